"""Tables of files and labels as people write them, and Parquet files that are damaged."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def save(folder, names):
    for name, pixels in zip(names, PIXELS, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def png(i):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[i]).save(buffer, "PNG")
    return buffer.getvalue()


def load(path, order=(0, 1, 2, 3)):
    """Loads what should be these images, exactly."""
    images = data.load_images(path)
    np.testing.assert_array_equal(images.images, PIXELS[list(order)])
    return images


NAMES = [f"{i}.png" for i in range(4)]


@pytest.mark.parametrize(
    ("text", "classes", "labels"),
    [
        ("file_name,label\n2.png,b\n0.png,a\n1.png,b\n3.png,c\n", "abc", [1, 0, 1, 2]),
        ('\ufefffile_name,label\r\n"2.png",b\r\n0.png,"a"\r\n1.png,b\r\n3,a', "ab", [1, 0, 1, 0]),
        ("label,Image\n10,2\n9,0\n10,1\n-1,3\n", ("-1", "9", "10"), [2, 1, 2, 0]),
        ('breed,id\n"b, or ""c""",2\na,0\n\na,1\na,3\n', ("a", 'b, or "c"'), [1, 0, 0, 0]),
        ("file_name , label\n2.png, b\n0.png, a \n1.png,b\n3.png,c", "abc", [1, 0, 1, 2]),
        ("file,label\n2.png,inf\n0.png,cat\n1.png,inf\n3.png,inf", ("cat", "inf"), [1, 0, 1, 1]),
        ("File Name,Class\n2.png,007\n0,10\n1,10\n3.png,007\n", ("007", "10"), [0, 1, 1, 0]),
    ],
)  # fmt: skip
def test_what_csv_files_look_like(tmp_path, text, classes, labels):
    save(tmp_path, NAMES)
    (tmp_path / "metadata.csv").write_bytes(text.encode())
    images = load(tmp_path, (2, 0, 1, 3))
    assert images.class_names == tuple(classes)
    np.testing.assert_array_equal(images.labels, labels)
    assert images.notes == ()


def test_json_lines(tmp_path):
    save(tmp_path, NAMES)
    rows = [{"file_name": f"{i}.png", "label": i > 1, "box": [1, {}]} for i in range(4)]
    path = tmp_path / "metadata.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    images = load(tmp_path)
    assert images.class_names == ("False", "True")
    np.testing.assert_array_equal(images.labels, [0, 0, 1, 1])
    assert images.notes == (
        f"{path}: file_name names the images and label their labels; not used: box",
    )
    path.write_text("".join(json.dumps({"file_name": name}) + "\n" for name in NAMES))
    assert load(path).labels is None
    save(tmp_path / "other", NAMES)
    table = pa.table({"file_name": NAMES, "label": pa.array(list("abab")).dictionary_encode()})
    pq.write_table(table, tmp_path / "other" / "metadata.parquet")
    np.testing.assert_array_equal(load(tmp_path / "other").labels, [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("name", "place"), [("labels.csv", "train"), ("train.csv", "images/images"), ("train.csv", ".")]
)
def test_tables_as_kaggle_has_them(tmp_path, name, place):
    """Names without an ending, in a folder beside the table; other tables are not looked at."""
    save(tmp_path / place, NAMES)
    (tmp_path / "notes").mkdir()
    (tmp_path / name).write_text("id,breed\n0,pug\n1,corgi\n2,pug\n3,pug\n")
    (tmp_path / "sample_submission.csv").write_text("id,pug,corgi\n7,0.5,0.5\n")
    (tmp_path / "classes.csv").write_text("id,class\n1,dog\n")
    images = load(tmp_path)
    assert images.class_names == ("corgi", "pug")
    np.testing.assert_array_equal(images.labels, [1, 0, 1, 1])
    assert load(tmp_path / name).class_names == ("corgi", "pug")
    first = data.load_images(tmp_path, images_per_class=1, classes=("pug",))
    np.testing.assert_array_equal(first.images, PIXELS[:1])


def test_a_list_beside_classes_in_folders_is_no_table(tmp_path):
    save(tmp_path, ["a/0.png", "b/1.png"])
    (tmp_path / "labels.csv").write_text("wnid,words\nn01,dog\n")
    images = load(tmp_path, (0, 1))
    assert images.class_names == ("a", "b")
    assert images.notes == (
        f"tables that are not used: {tmp_path / 'labels.csv'}; for the labels of one, give its "
        f"path, with columns file_name and label",
        f"1 files of {tmp_path} are no images by their names (.csv)",
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "a,b\n1,2\n"),
        ("metadata.csv", ""),
        ("metadata.csv", "file_name,label\n"),
        ("metadata.csv", "file_name,caption\na/0.png,a dog\n"),
        ("train.csv", "file_name,label\na/0.png,q\n"),
        ("train.csv", "file_name,label\n0.png,q\n"),
        ("train.csv", "\udcff"),
        ("notes.parquet", "version https://git-lfs"),
        ("a.jsonl", "["),
    ],
)
def test_a_table_that_is_not_of_its_folder_leaves_the_classes_alone(tmp_path, name, text):
    save(tmp_path, ["a/0.png", "a/1.png", "b/0.png", "b/1.png"])
    (tmp_path / name).write_text(text, errors="surrogateescape")
    images = load(tmp_path)
    assert images.class_names == ("a", "b")
    np.testing.assert_array_equal(images.labels, [0, 0, 1, 1])
    assert images.notes[0].startswith(f"tables that are not used: {tmp_path / name}; for the lab")


def test_arrow_and_parquet_without_images_leave_the_classes_alone(tmp_path):
    save(tmp_path, ["a/0.png", "b/1.png"])
    (tmp_path / "cache.arrow").write_bytes(b"ARROW1")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    images = load(tmp_path, (0, 1))
    assert images.class_names == ("a", "b")
    assert images.notes[0].startswith(f"tables that are not used: {tmp_path / 'x.parquet'}; ")
    assert images.notes[1].endswith("(.arrow, .parquet)")
    write(tmp_path / "x.parquet")
    (note,) = load(tmp_path).notes
    assert note == f"{tmp_path / 'x.parquet'} is taken; not used: a, b"


@pytest.mark.parametrize(
    ("table", "text", "folder", "note"),
    [
        ("trainLabels.csv", "id,label\n{0},cat\n{1},dog\n", "train", None),
        ("Training_set.csv", "filename,label\n{0}.png,cat\n{1}.png,dog\n", "train", None),
        ("train.csv", "id_code,diagnosis\n{0},cat\n{1},dog\n", "train_images", None),
        ("train.csv", "Image,Id\n{0}.png,cat\n{1}.png,dog\n", "train", None),
        ("train/labels.csv", "image,class\n{0}.png,cat\n{1}.png,dog\n", "train", "test"),
    ],
)
def test_tables_beside_folders_of_sets(tmp_path, table, text, folder, note):
    """The training set's files are meant where others have the same names."""
    save(tmp_path / folder, NAMES[:2])
    (tmp_path / "test").mkdir()
    Image.fromarray(PIXELS[2]).save(tmp_path / "test" / "0.png")
    path = tmp_path / table
    path.write_text(text.format(*"01"))
    (tmp_path / "sampleSubmission.csv").write_text("id,label\n0,dog\n")
    (tmp_path / "test.csv").write_text("id,label\n0,dog\n")
    (tmp_path / table.replace("train/labels", "train/test")).write_text(text.format(*"01"))
    if note is None:
        note = f"{path} gives 2 of the 3 images in its folder; the others are not used"
    else:
        (tmp_path / "test.csv").unlink()
        note = f"the training set {path.parent} is taken; not used: test"
    images = load(tmp_path, (0, 1))
    assert images.class_names == ("cat", "dog")
    np.testing.assert_array_equal(images.labels, [0, 1])
    assert images.notes == (note,)


def test_sets_are_classes_only_with_a_note(tmp_path):
    save(tmp_path, ["test/0.png", "train/1.png"])
    table = tmp_path / "train" / "_classes.csv"
    table.write_text("filename, cat, dog\n1.png, 1, 0\n")
    images = load(tmp_path, (0, 1))
    assert images.class_names == ("test", "train")
    assert images.notes[:2] == (
        f"tables that are not used: {table}; for the labels of one, give its path, with columns "
        f"file_name and label",
        f"the classes of {tmp_path} are test, train, which are called as parts of a data set: for "
        f"the images of one part alone give its folder",
    )
    (tmp_path / "car").mkdir()
    Image.fromarray(PIXELS[2]).save(tmp_path / "car" / "2.png")
    table.unlink()
    assert load(tmp_path, (2, 0, 1)).notes == ()


def test_a_table_that_names_files_of_several_sets(tmp_path):
    save(tmp_path, ["train/0.png", "train/1.png", "test/2.png", "train/3.png"])
    path = tmp_path / "metadata.csv"
    text = "file_name,label\ntrain/1.png,a\ntest/2.png,b\n./train/0.png,c\n"
    path.write_text(text)
    images = load(tmp_path, (1, 0))
    assert images.class_names == ("a", "c")
    assert images.notes == (
        f"the training set of {path} is taken; not used: test",
        f"{path} gives 2 of the 4 images in its folder; the others are not used",
    )
    (tmp_path / "train").rename(tmp_path / "val")
    path.write_text(text.replace("train", "val"))
    with pytest.raises(UserError, match="names files of several sets, test, validation: keep th"):
        data.load_images(tmp_path)


def test_images_at_every_depth_whatever_a_table_says(tmp_path):
    save(tmp_path, ["a/0.png", "b/1.png"])
    (tmp_path / "metadata.csv").write_text("file_name,label\na/0.png,x\n")
    assert load(tmp_path, (0,)).class_names == ("x",)
    images = data.load_images(tmp_path, flat=True)
    np.testing.assert_array_equal(images.images, PIXELS[:2])
    with pytest.raises(UserError, match="flat is for folders of images"):
        data.load_images(tmp_path / "metadata.csv", flat=True)


def test_several_tables(tmp_path):
    save(tmp_path, NAMES)
    for name in ("metadata.csv", "train.csv"):
        (tmp_path / name).write_text("file,label\n0.png,a\n1.png,b\n")
    load(tmp_path, (0, 1))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png"}')
    with pytest.raises(UserError, match=r"holds metadata.csv, metadata.jsonl: give the one that"):
        data.load_images(tmp_path)
    load(tmp_path / "metadata.jsonl", (0,))


def test_splits_in_folders(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split, NAMES)
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n1.png,x\n0.png,y\n")
    images = load(tmp_path, (1, 0))
    table = tmp_path / "train" / "metadata.csv"
    assert images.notes == (
        f"the training set {tmp_path / 'train'} is taken; not used: test",
        f"{table} gives 2 of the 4 images in its folder; the others are not used",
    )
    (tmp_path / "test" / "metadata.csv").unlink()
    assert load(tmp_path, (1, 0)).notes == images.notes
    (tmp_path / "test" / "metadata.csv").write_bytes(table.read_bytes())
    (tmp_path / "train").rename(tmp_path / "dev")
    with pytest.raises(UserError, match=r"holds several sets, dev, test: give one of them, .*/dev"):
        data.load_images(tmp_path)


GOOD = "file_name,label\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n0.png,x\n", r"no column of .* names the images' files \(it has: a, b\); call the"),
        ("file_name;label\n0.png;x\n", "; separate them by commas"),
        ("", r"\(it has: none\)"),
        (GOOD, "metadata.csv has no rows"),
        (GOOD + "0.png\n", "line 2 of .* has no label"),
        (GOOD + "0.png,\n1.png,a\n2.png,\n", "2 of 3 rows of .*line 2 .*; line 4 of .* no label"),
        (GOOD + "0.png,a,b\n", "line 2 of .* has more fields than the first line"),
        (GOOD + ",a\n", "file_name in line 2 of .* is .*, no name of a file"),
        (GOOD + "0.png,a\n1.png,a\n0.png,b\n", "line 4 of .* names 0.png again, after line 2"),
        (GOOD + "0.png,0.25\n1.png,1\n", "holds 0.25: labels are integers or texts, no fractions"),
        (GOOD + "0.png,nan\n1.png,1\n", "holds nan: take the rows out that have no label"),
        (GOOD + "0.png,cat\n1.png,NaN\n", "holds NaN: take the rows out"),
        (GOOD + "0.png,inf\n1.png,1\n", "holds inf: labels are integers or texts"),
        ("file_name,label,label\n0.png,a,b\n", "has several columns label: keep the one"),
        ("version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS, not the f"),
        (
            GOOD + "7.png,a\n0.png,a\n8.png,a\n",
            "2 of 3 files .* '7.png'; line 4 .* '8.png': there is no such file",
        ),
        (GOOD + "../x.png,a\n", "names '../x.png': give names of files below the table's folder"),
        (GOOD + "/etc/passwd,a\n", "names '/etc/passwd': give names of files below"),
        (GOOD + "https://a.b/c.png,a\n", "give names of files below"),
        (GOOD + "link.png,a\n", "names 'link.png': it leads out of"),
        (GOOD + "out/x.png,a\n", "names 'out/x.png': it leads out of"),
        (GOOD + "folder.png,a\n", "names 'folder.png': it is no file"),
        (GOOD + "pipe.png,a\n", "names 'pipe.png': it is no file"),
        (GOOD + "a\0.png,a\n", "names 'a.x00.png': "),
        (GOOD + f"{'a' * 5000},a\n", "names 'aaaa"),
        (GOOD + '"0.png,a\n' + "x" * 200_000, "cannot be read as a table: field larger than"),
        (GOOD + "two,a\n", "there are two.jpg, two.png: add the ending"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, message):
    root = tmp_path / "set"
    save(root, [*NAMES[:3], "two.png"])
    save(root, ["two.jpg"])
    save(tmp_path, ["x.png"])
    (root / "link.png").symlink_to("../x.png")
    (root / "out").symlink_to(tmp_path)
    (root / "folder.png").mkdir()
    __import__("os").mkfifo(root / "pipe.png")
    (root / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        data.load_images(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "0.png", "label": 1}\n{"file_name"\n', "line 2 of .* is no JSON object"),
        ("[1]\n[2]\n", "line 1 of .* is no JSON object: write one per line"),
        ('[\n{"file_name": "0.png"}\n]', "line 1 of .* is no JSON object"),
        ('{"file_name": "0.png"', "line 1 of .* is no JSON object"),
        ('{"file_name": "0.png", "label": 1.5}', "holds values of type float: labels are all int"),
        ('{"file_name": "0.png", "label": 1}\n{"file_name": "1.png", "label": "1"}', "int, str"),
        ('{"file_name": "0.png", "label": [1]}', "of type list"),
        ('{"file_name": "0.png", "label": "\\ud800"}', "holds a text that is no Unicode"),
        ('{"file_name": {"a": 1}, "label": 1}', r'file_name in line 1 of .* is {"a": 1}, no name'),
        ('{"file_name": "0.png", "label": null}', "line 1 of .* has no label"),
        ("[" * 100_000, "line 1 of .* is no JSON object"),
    ],
)
def test_json_lines_that_cannot_be_used(tmp_path, text, message):
    save(tmp_path, NAMES)
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        data.load_images(tmp_path)


def test_a_table_in_another_encoding(tmp_path):
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "metadata.csv").write_bytes((GOOD + "ä.png,a\n").encode(encoding))
        with pytest.raises(UserError, match="cannot be read as a table: 'utf-8' codec can't"):
            data.load_images(tmp_path)


def test_a_table_larger_than_the_memory_is_not_read(tmp_path):
    (tmp_path / "metadata.csv").write_text(GOOD + "x" * 2**21)
    with pytest.raises(UserError, match=r"reading .* takes 0.0156 GiB of memory, more than"):
        data.load_images(tmp_path, memory_gib=0.01)


# Parquet


def write(path, labels=(0, 1, 0, 1), images=None, **options):
    images = images or [png(i) for i in range(4)]
    columns = {"image": images} if labels is None else {"image": images, "label": labels}
    pq.write_table(pa.table(columns), path, **options)


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary()), pa.binary_view()],
)
def test_kinds_of_bytes(tmp_path, kind):
    path = tmp_path / "set.parquet"
    encoded = pa.array([png(i) for i in range(4)])
    encoded = encoded.dictionary_encode() if pa.types.is_dictionary(kind) else encoded.cast(kind)
    write(path, list("xyxy"), encoded, row_group_size=3)
    images = load(path)
    assert images.class_names == ("x", "y")
    np.testing.assert_array_equal(images.labels, [0, 1, 0, 1])


def test_rows_are_read_in_any_order(tmp_path):
    """A group is opened again for a row before the last; rows of the next are found too."""
    from diffusion_jax.data import shards

    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", None, [b"%b%d" % (name.encode(), i) for i in range(50)],
              row_group_size=20)  # fmt: skip
    groups = shards.groups_of([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    rows = shards.Rows(groups, "image")
    order = [0, 99, 50, 51, 49, 20, 19, 40, 3, 2, 97, 18]
    assert [rows[i] for i in order] == [b"%b%d" % (b"ab"[i // 50 :][:1], i % 50) for i in order]
    assert rows.place(73) == (tmp_path / "b.parquet", "row 23")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"a": [b"x"], "b": [b"y"]},
            r"has several columns of encoded images \(it has: a binary,",
        ),
        ({"image": ["x.png"], "label": [1]}, "has no column of encoded images"),
        ({"image": [[b"x"]]}, r"has no column .* \(it has: image list<element: binary>\)"),
        ({"image": [png(0)] * 2, "label": [1, None]}, "label of .* missing in 1 rows, the first 1"),
        ({"image": [png(0)], "label": [[1]]}, "label of .* is list<.*labels are integers, texts"),
        ({"image": [png(0)], "label": [0.5]}, "label of .* is double"),
        ({"image": [png(0), None, b""]}, "2 of 3 images of .*row 1 of .* holds no image; row 2 of"),
        ({"image": [png(0), b"no image"]}, "row 1 of .* cannot be read as an image"),
        ({"image": [{"bytes": b"", "path": "a"}, None]}, "2 of 2 .*row 0 of .* holds no image"),
        ({"image": pa.array([], pa.binary())}, "has no rows"),
    ],
)
def test_parquet_files_that_cannot_be_used(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    with pytest.raises(UserError, match=message):
        data.load_images(tmp_path / "set.parquet")


@pytest.mark.parametrize("metadata", ["{", "[]", '{"info": {"features": 3}}', '{"info": null}'])
def test_damaged_metadata_of_hugging_face(tmp_path, metadata):
    table = pa.table({"image": [png(0)]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(UserError, match=r"has damaged metadata \(huggingface\)"):
        data.load_images(tmp_path)


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_that_are_no_class_of_the_file(tmp_path, label):
    kinds = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
    table = pa.table({"image": [png(0)] * 2, "label": [1, label]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(kinds)})
    pq.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(UserError, match=f"is {label} in row 1, none of its 2 classes: take the"):
        data.load_images(tmp_path)


def test_truncated_parquet_and_files_that_do_not_belong_together(tmp_path):
    write(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    with pytest.raises(UserError, match=r"a.parquet is a pointer of Git LFS, not the file: run"):
        data.load_images(tmp_path)
    for content in (whole[:-20], whole[: len(whole) // 2], b"", b"PAR1" + whole[200:]):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(UserError, match=r"a.parquet cannot be read as Parquet: "):
            data.load_images(tmp_path)
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", list("xyxy"))
    assert len(data.load_images(tmp_path / "b.parquet").images) == 4
    write(tmp_path / "b.parquet", None)
    with pytest.raises(UserError, match=r"b.parquet has other columns or classes than .*a.parquet"):
        data.load_images(tmp_path)


def test_a_row_group_is_not_held_in_memory(tmp_path):
    """One group of 64 MiB in pages of one image each."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (210, 210, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG", compress_level=0)
    path = tmp_path / "set.parquet"
    images = pa.table({"image": [buffer.getvalue()] * 500})
    pq.write_table(images, path, use_dictionary=False, compression="none", write_batch_size=1)
    del images
    assert path.stat().st_size > 60 * 2**20
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    from diffusion_jax.data import shards

    (group,) = shards.groups_of([path])
    most = 0
    for batch in shards.batches(group, "image", 16):
        assert len(batch) <= 16
        most = max(most, pool.bytes_allocated() - before)
    assert most < 16 * 2**20


def test_rows_that_are_claimed_are_not_listed_before_they_are_counted(tmp_path, monkeypatch):
    from diffusion_jax.data import shards

    write(tmp_path / "a.parquet", None)
    real = pq.read_metadata

    class Group:
        num_rows = 2**40

    class Claims:
        num_row_groups = 2

        def row_group(self, index):
            return Group()

    monkeypatch.setattr(shards.pq, "read_metadata", lambda path: Claims())
    with pytest.raises(UserError, match=r"the 2199023255552 rows of .* takes 6.14e\+05 GiB"):
        data.load_images(tmp_path)
    monkeypatch.setattr(shards.pq, "read_metadata", real)
    load(tmp_path)
