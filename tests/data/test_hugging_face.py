"""Image sets as Hugging Face's own library writes and reads them."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 8, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 0, 2, 0, 2, 2, 0, 0, 2, 0, 2])
CLASSES = ("zebra", "ant", "bee")  # in no order of letters; there is no ant


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """The library, away from the network and from the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hugging_face")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        import datasets

        datasets.disable_progress_bars()
        yield datasets


def dataset(hf, image="image", label="label", pixels=PIXELS, kind=None):
    kind = kind or hf.ClassLabel(names=list(CLASSES))
    columns = {image: list(map(Image.fromarray, pixels)), label: LABELS[: len(pixels)].tolist()}
    return hf.Dataset.from_dict(columns, hf.Features({image: hf.Image(), label: kind}))


def write_shards(whole, folder, split, count):
    """As push_to_hub names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        part = whole.shard(count, i, contiguous=True)
        part.to_parquet(folder / f"{split}-{i:05d}-of-{count:05d}.parquet", batch_size=3)


def check(images, pixels=PIXELS, labels=LABELS // 2, names=("zebra", "bee")):
    np.testing.assert_array_equal(images.images, pixels)
    assert images.images.dtype == np.uint8
    np.testing.assert_array_equal(images.labels, labels)
    assert images.class_names == names


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine")])
def test_a_parquet_file(hf, tmp_path, image, label):
    """Classes have the file's names and order; one without images is left out, which is said."""
    path = tmp_path / "set.parquet"
    dataset(hf, image, label).to_parquet(path, batch_size=5)
    assert pq.read_metadata(path).num_row_groups == 3
    images = data.load_images(path)
    check(images)
    assert images.notes == (f"classes of {path} without an image are left out: ant",)
    first = data.load_images(path, images_per_class=2, classes=("bee", "zebra"))
    check(first, PIXELS[:4], [0, 1, 1, 0], ("bee", "zebra"))
    with pytest.raises(UserError, match="has no class ant; its classes are zebra, bee"):
        data.load_images(path, classes=("ant",))
    small = data.load_images(path, image_size=4)
    expected = [
        np.asarray(Image.fromarray(each[1:9]).resize((4, 4), Image.Resampling.BILINEAR))
        for each in PIXELS
    ]
    np.testing.assert_array_equal(small.images, expected)


def test_the_hub_s_own_conversion(hf, tmp_path):
    for split, part in (("train", dataset(hf)), ("test", dataset(hf).select([0]))):
        (tmp_path / "default" / split).mkdir(parents=True)
        part.to_parquet(tmp_path / "default" / split / "0000.parquet")
    images = data.load_images(tmp_path)
    check(images)
    train = tmp_path / "default" / "train"
    assert images.notes[0] == f"the training set {train} is taken; not used: test"


def test_images_that_the_library_left_where_they_were(hf, tmp_path):
    """What the message says makes a file that holds them."""
    for i, name in enumerate(("a", "b")):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(PIXELS[i]).save(tmp_path / "images" / name / "0.png")
    found = hf.load_dataset(
        "imagefolder",
        data_dir=str(tmp_path / "images"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    path = tmp_path / "set.parquet"
    found.to_parquet(path)
    with pytest.raises(
        UserError, match=r"2 of 2 .*a/0.png' and does not hold it; .*: embed the im"
    ):
        data.load_images(path)
    embed = hf.table.embed_table_storage
    found.with_format("arrow").map(embed, batched=True).to_parquet(path)
    check(data.load_images(path), PIXELS[:2], [0, 1], ("a", "b"))


@pytest.mark.parametrize("place", [".", "data", "plain_text"])
def test_a_clone_of_a_hub_repository(hf, tmp_path, place):
    """The training set is taken, of all its files in order, and the others are named."""
    whole = dataset(hf)
    write_shards(whole, tmp_path / place, "train", 3)
    write_shards(whole.select([0]), tmp_path / place, "test", 1)
    (tmp_path / "README.md").write_text("---\n")
    (tmp_path / ".gitattributes").write_text("")
    images = data.load_images(tmp_path)
    check(images)
    first = tmp_path / place / "train-00000-of-00003.parquet"
    other = "test-00000-of-00001.parquet"
    assert images.notes[0] == f"the training set {first} is taken; not used: {other}"
    one = data.load_images(tmp_path / place / other)
    np.testing.assert_array_equal(one.images, PIXELS[:1])
    (tmp_path / place / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(UserError, match=r"2 of 3 files train-\*-of-00003, not number 00001: get"):
        data.load_images(tmp_path)


def test_splits_without_a_training_set(hf, tmp_path):
    for split in ("test", "validation"):
        write_shards(dataset(hf), tmp_path, split, 1)
    with pytest.raises(UserError, match="holds several sets, test, validation: give"):
        data.load_images(tmp_path)
    (tmp_path / "validation-00000-of-00001.parquet").unlink()
    check(data.load_images(tmp_path))


@pytest.mark.parametrize("memory_gib", [None, 0.0])
def test_training_takes_parquet(hf, tmp_path, memory_gib):
    """In memory or mapped: the same, and those held out follow."""
    write_shards(dataset(hf), tmp_path / "set", "train", 2)
    config = DataConfig(
        str(tmp_path / "set"),
        (),
        images_per_class=4,
        image_size=None,
        held_out_per_class=2,
        prepared_dir=tmp_path / "p",
        memory_gib=memory_gib,
    )
    images, held_out = data.load_split(config)
    places = [np.flatnonzero(label == LABELS) for label in (0, 2)]
    first = np.sort(np.concatenate([each[:4] for each in places]))
    then = np.sort(np.concatenate([each[4:6] for each in places]))
    check(images, PIXELS[first], LABELS[first] // 2)
    check(held_out, PIXELS[then], LABELS[then] // 2)
    assert isinstance(images.images, np.memmap) == (memory_gib == 0.0)


def test_kinds_of_labels(hf, tmp_path):
    path = tmp_path / "set.parquet"
    dataset(hf, kind=hf.Value("int8")).to_parquet(path)
    check(data.load_images(path), names=("0", "2"))
    dataset(hf, kind=hf.Value("bool")).to_parquet(path)
    check(data.load_images(path), names=("False", "True"))
    dataset(hf, kind=hf.Value("float32")).to_parquet(path)
    with pytest.raises(UserError, match=r"label of .* is float: labels are integers, texts or"):
        data.load_images(path)
    dataset(hf).remove_columns("label").to_parquet(path)
    assert data.load_images(path).labels is None
    both = dataset(hf, label="fine_label").add_column("coarse_label", LABELS // 2)
    both = both.cast_column("coarse_label", hf.ClassLabel(names=["few", "many"]))
    both.to_parquet(path)
    with pytest.raises(UserError, match="several columns of classes, fine_label, coarse_label: c"):
        data.load_images(path)
    both.rename_column("coarse_label", "label").to_parquet(path)
    images = data.load_images(path)
    check(images, names=("few", "many"))
    assert images.notes == (
        f"{path}: image names the images and label their labels; not used: fine_label",
    )


def test_what_the_library_writes_that_is_no_image(hf, tmp_path):
    path = tmp_path / "set.parquet"
    pixels = {"image": [np.zeros((8, 8), np.uint8)] * 3}
    features = hf.Features({"image": hf.Array2D((8, 8), "uint8")})
    hf.Dataset.from_dict(pixels, features).to_parquet(path)
    with pytest.raises(UserError, match=r"no column of encoded images .* save pixels in an .npz"):
        data.load_images(path)
    hf.DatasetDict({"train": dataset(hf)}).save_to_disk(tmp_path / "saved")
    for folder in (tmp_path / "saved", tmp_path / "saved" / "train"):
        with pytest.raises(UserError, match=r"save_to_disk writes \(Arrow\): give what to_parquet"):
            data.load_images(folder)


def test_images_that_are_files_beside_the_parquet(hf, tmp_path):
    """As the library leaves them where it is told not to embed them."""
    (tmp_path / "set" / "images").mkdir(parents=True)
    names = [f"images/{i}.png" for i in range(12)]
    for name, pixels in zip(names, PIXELS, strict=True):
        Image.fromarray(pixels).save(tmp_path / "set" / name)
    path = tmp_path / "set" / "set.parquet"
    columns = {"image": [{"bytes": None, "path": name} for name in names], "label": LABELS.tolist()}
    features = hf.Features({"image": hf.Image(decode=False), "label": hf.Value("string")})
    hf.Dataset.from_dict(columns, features).to_parquet(path, batch_size=12)
    pq.write_table(unembedded(pq.read_table(path), names), path)
    check(data.load_images(path), names=("0", "2"))
    Image.fromarray(PIXELS[0]).save(tmp_path / "outside.png")
    pq.write_table(unembedded(pq.read_table(path), ["../outside.png", *names[1:]]), path)
    with pytest.raises(UserError, match=r"row 0 of .* names '../outside.png': give names of files"):
        data.load_images(path)


def unembedded(table, names):
    rows = table.to_pylist()
    for row, name in zip(rows, names, strict=True):
        row["image"] = {"bytes": None, "path": name}
    return type(table).from_pylist(rows, schema=table.schema)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("split", [".", "train"])
def test_the_library_and_we_read_a_folder_with_metadata_alike(hf, tmp_path, ending, split):
    root = tmp_path / "set"
    folder = root / split
    (folder / "deep").mkdir(parents=True)
    names = [f"{'deep/' * (i % 2)}image, {i}.png" for i in range(12)]
    for name, pixels in zip(names, PIXELS, strict=True):
        Image.fromarray(pixels).save(folder / name)
    table = {"file_name": names, "label": [CLASSES[label] for label in LABELS]}
    written = hf.Dataset.from_dict(table)
    path = folder / f"metadata.{ending}"
    written.to_csv(path) if ending == "csv" else written.to_json(path)
    images = data.load_images(root)
    check(images, labels=(LABELS == 0).astype(int), names=("bee", "zebra"))
    theirs = hf.load_dataset(
        "imagefolder", data_dir=str(root), split="train", cache_dir=str(tmp_path / "cache")
    )
    # They order the files by name, we as the table has them.
    found = {np.asarray(row["image"]).tobytes(): row["label"] for row in theirs}
    ours = zip(images.images, images.labels, strict=True)
    assert found == {pixels.tobytes(): images.class_names[label] for pixels, label in ours}
