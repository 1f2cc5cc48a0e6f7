"""What is counted in a compiled program, on small programs written by hand."""

import pytest

from experiments.tools.gpu import hlo, launches
from experiments.tools.gpu.bounds import GIB, broken_bounds
from experiments.tools.gpu.graphs import graphs, read_thunks

# A convolution, and a kernel that adds to it: 2 x 4 x 4 x 8 entries, in bf16.
SIMPLE = """\
HloModule jit_f, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%fused_add (p0.1: bf16[2,4,4,8], p1.1: f32[8]) -> f32[2,4,4,8] {
  %p0.1 = bf16[2,4,4,8]{3,2,1,0} parameter(0)
  %p1.1 = f32[8]{0} parameter(1)
  %convert.1 = f32[2,4,4,8]{3,2,1,0} convert(%p0.1)
  %broadcast.1 = f32[2,4,4,8]{3,2,1,0} broadcast(%p1.1), dimensions={3}
  ROOT %add.1 = f32[2,4,4,8]{3,2,1,0} add(%convert.1, %broadcast.1)
}

ENTRY %main (x: bf16[2,4,4,8], k: bf16[3,3,8,8], b: f32[8]) -> f32[2,4,4,8] {
  %x = bf16[2,4,4,8]{3,2,1,0} parameter(0)
  %k = bf16[3,3,8,8]{3,2,1,0} parameter(1)
  %b = f32[8]{0} parameter(2)
  %conv = (bf16[2,4,4,8]{3,2,1,0}, u8[4096]{0}) custom-call(%x, /*index=1*/%k), <CONV>
  %gte = bf16[2,4,4,8]{3,2,1,0} get-tuple-element(%conv), index=0
  %view = bf16[2,4,4,8]{3,2,1,0} bitcast(%gte)
  ROOT %fusion = f32[2,4,4,8]{3,2,1,0} fusion(%view, %b), kind=kLoop, calls=%fused_add, <NORM>
}
"""
SIMPLE = SIMPLE.replace(
    "<CONV>", 'custom_call_target="__cudnn$convForward", dim_labels=b01f_01io->b01f'
)
SIMPLE = SIMPLE.replace("<NORM>", 'metadata={op_name="jit(f)/jvp(UNet)/block/norm/add"}')
ENTRIES = 2 * 4 * 4 * 8


def test_launches_are_kernels_and_library_calls():
    conv, fusion = launches.launches(SIMPLE)
    assert (conv.name, conv.target, conv.times) == ("conv", "__cudnn$convForward", 1)
    assert fusion.operations == {"convert", "broadcast", "add"}
    # bf16 features in and out, the kernel, and none of cuDNN's scratch space
    assert (conv.read, conv.written) == (2 * ENTRIES + 2 * 9 * 64, 2 * ENTRIES)
    assert (fusion.read, fusion.written) == (2 * ENTRIES + 4 * 8, 4 * ENTRIES)
    assert {name: len(found) for name, found in launches.by_kind([conv, fusion]).items()} == {
        "norm": 1,
        "convolution (cuDNN)": 1,
    }


def test_comments_between_operands_are_none():
    (conv,) = (i for i in hlo.instructions(SIMPLE) if i.target)
    assert [str(shape) for shape in conv.operands] == ["bf16[2,4,4,8]", "bf16[3,3,8,8]"]


def test_float32_features_are_seen_by_their_shape():
    found = launches.launches(SIMPLE)
    (wide,) = launches.float32_activations(found, batch=2, image_size=8, levels=2)
    assert wide.name == "fusion"
    # Other batches and sizes, such as those of a kernel or its gradient
    assert launches.float32_activations(found, batch=3, image_size=8, levels=2) == []
    assert launches.float32_activations(found, batch=2, image_size=16, levels=2) == []


def fusion(body, result, operands, types):
    """The one launch of a program that has a fusion alone."""
    parameters = "".join(f"  %a{i} = {t} parameter({i})\n" for i, t in enumerate(types))
    (launch,) = launches.launches(
        f"HloModule jit_f, is_scheduled=true\n\n%fused (p: f32[1]) -> f32[1] {{\n{body}}}\n\n"
        f"ENTRY %main (p: f32[1]) -> f32[1] {{\n{parameters}"
        f"  ROOT %r = {result} fusion({operands}), kind=kLoop, calls=%fused\n}}\n"
    )
    return launch


def test_a_slice_is_read_and_not_the_whole():
    """Of a vector of all parameters, in whichever order sliced, cast and reshaped."""
    launch = fusion(
        "  %p0 = f32[1000]{0} parameter(0)\n"
        "  %c = bf16[1000]{0} convert(%p0)\n"
        "  %s = bf16[60]{0} slice(%c), slice={[100:160]}\n"
        "  ROOT %b = bf16[6,10]{1,0} bitcast(%s)\n",
        "bf16[6,10]{1,0}",
        "%a0",
        ["f32[1000]{0}"],
    )
    assert (launch.read, launch.written) == (4 * 60, 2 * 60)


def test_several_slices_are_read_together_and_the_whole_once():
    def slices(*sizes):
        body = "  %p0 = f32[100]{0} parameter(0)\n"
        for i, size in enumerate(sizes):
            body += f"  %s{i} = f32[{size}]{{0}} slice(%p0), slice={{[0:{size}]}}\n"
        names = ", ".join(f"%s{i}" for i in range(len(sizes)))
        types = ", ".join(f"f32[{size}]{{0}}" for size in sizes)
        body += f"  ROOT %t = ({types}) tuple({names})\n"
        return fusion(body, f"({types})", "%a0", ["f32[100]{0}"])

    assert slices(20, 30).read == 4 * 50
    assert slices(20, 90).read == 4 * 100
    assert slices(20, 90).written == 4 * 110


def test_a_gather_reads_its_rows_and_its_indices():
    launch = fusion(
        "  %p0 = f32[1000,16]{1,0} parameter(0)\n"
        "  %p1 = s32[4,1]{1,0} parameter(1)\n"
        "  ROOT %g = f32[4,16]{1,0} gather(%p0, %p1), offset_dims={1}, slice_sizes={1,16}\n",
        "f32[4,16]{1,0}",
        "%a0, %a1",
        ["f32[1000,16]{1,0}", "s32[4,1]{1,0}"],
    )
    assert (launch.read, launch.written) == (4 * 64 + 4 * 4, 4 * 64)


def test_a_reduction_reads_all():
    launch = fusion(
        "  %p0 = f32[64,16]{1,0} parameter(0)\n"
        "  %z = f32[] constant(0)\n"
        "  ROOT %r = f32[16]{0} reduce(%p0, %z), dimensions={0}, to_apply=%sum\n",
        "f32[16]{0}",
        "%a0",
        ["f32[64,16]{1,0}"],
    )
    assert (launch.read, launch.written) == (4 * 64 * 16, 4 * 16)


@pytest.mark.parametrize("in_tuple", [False, True])
def test_an_update_in_place_moves_the_update(in_tuple):
    """What a scan writes its metrics with."""
    root = "ROOT %u" if not in_tuple else "%u"
    end = "  ROOT %t = (f32[1000]{0}, f32[8]{0}) tuple(%u, %p1)\n" if in_tuple else ""
    launch = fusion(
        "  %p0 = f32[1000]{0} parameter(0)\n"
        "  %p1 = f32[8]{0} parameter(1)\n"
        "  %p2 = s32[] parameter(2)\n"
        f"  {root} = f32[1000]{{0}} dynamic-update-slice(%p0, %p1, %p2)\n{end}",
        "(f32[1000]{0}, f32[8]{0})" if in_tuple else "f32[1000]{0}",
        "%a0, %a1, %a2",
        ["f32[1000]{0}", "f32[8]{0}", "s32[]"],
    )
    assert launch.read == 4 * 8 + 4
    assert launch.written == 4 * 8 * (1 + in_tuple)


LOOP = """\
HloModule jit_f, is_scheduled=true

%body (s.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s.1 = (s32[], f32[8]{0}) parameter(0)
  %v.1 = f32[8]{0} get-tuple-element(%s.1), index=1
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %copy.1 = f32[8]{0} copy(%v.1)
  %start = f32[8]{0} all-reduce-start(%copy.1), to_apply=%sum
  %done = f32[8]{0} all-reduce-done(%start)
  ROOT %t.1 = (s32[], f32[8]{0}) tuple(%i.1, %done)
}

%condition (s.2: (s32[], f32[8])) -> pred[] {
  %s.2 = (s32[], f32[8]{0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%s.2), index=0
  ROOT %less = pred[] compare(%i.2, %i.2), direction=LT
}

ENTRY %main (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  ROOT %while = (s32[], f32[8]{0}) while(%s), condition=%condition, body=%body<KNOWN>
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    known = LOOP.replace("<KNOWN>", ', backend_config={"known_trip_count":{"n":"7"}}')
    assert launches.loops(known) == [7]
    found = {launch.name: launch for launch in launches.launches(known)}
    assert {name: launch.times for name, launch in found.items()} == {"copy.1": 7, "start": 7}
    assert found["start"].traffic == found["copy.1"].traffic == 2 * 4 * 8


def test_a_loop_of_unknown_length_runs_as_said_and_asks_its_condition():
    unknown = LOOP.replace("<KNOWN>", "")
    assert launches.loops(unknown) == [0]
    found = {launch.name: launch.times for launch in launches.launches(unknown, rounds=5)}
    assert found == {"copy.1": 5, "start": 5, "less": 6}


THUNKS = """\
000: kCommandBuffer [source        | next=251 (1)  ]
    001: kCopy         [source         | next=002 (1)  ] kCopy
    002: kCustomKernel [prev=001 (1)   | next=006 (4)  ] loop_select_fusion_22
003: kConvolution  [prev=000 (1)  | next=004 (1)  ] kConvolution
004: kWhile        [prev=003 (1) | next=012 (1)]
condition:
    005: kCustomKernel [source | sink] loop_compare_fusion
  body:
    000: kCommandBuffer [source | next=007 (1)]
        006: kCustomKernel [source | sink] loop_add_fusion
    007: kCuDnn [prev=000 (1) | sink] kCuDnn
012: kCustomKernel [prev=004 (1) | sink        ] input_reduce_fusion
"""


def test_graphs_and_what_is_outside_of_them(tmp_path):
    assert graphs(THUNKS) == (2, {"Convolution": 1, "CuDnn": 1, "CustomKernel": 2})
    with pytest.raises(FileNotFoundError, match="no thunks of one program"):
        read_thunks(tmp_path)
    before, after = "m.jit_f.thunk_sequence.txt", "m.jit_f.thunk_sequence_after_thunk_passes.txt"
    (tmp_path / before).write_text("before")
    assert read_thunks(tmp_path) == "before"
    (tmp_path / after).write_text("after")
    assert read_thunks(tmp_path) == "after"


GOOD = {
    "program": "train",
    "batch": 64,
    "devices": 1,
    "dtype": "bfloat16",
    "remat": False,
    "paper": True,
    "attentions": 11,
    "memory": {"temporary": int(2.5 * GIB)},
    "traffic": 31e9,
    "launches": 1_550.0,
    "compile_processor_seconds": 90.0,
    "float32_activations": [0, 0.0],
    "graphs": 109,
    "outside_graphs": {"Convolution": 197, "CustomKernel": 182},
    "loops": [10],
    "convolutions": {"cuDNN forward": 80},
    "convolutions_not_nhwc": {},
    "fused_attentions": {"forward": 11, "backward": 11},
    "transposes": [],
    "narrow_sums": [],
    "collectives": {"all-reduce": (1, 100)},
    "host_calls": {},
    "donated": 8,
    "arguments": 9,
}
SAMPLING = {"program": "sample", "graphs": 51, "outside_graphs": {"Convolution": 66}}


def test_every_bound_on_what_a_program_is_is_seen_to_be_broken():
    assert broken_bounds(GOOD) == []
    bad = {
        "loops": [10, 0],
        "convolutions": {"XLA": 1},
        "convolutions_not_nhwc": {"bf01_oi01->bf01": 1},
        "fused_attentions": {"forward": 11, "backward": 10},
        "transposes": [["bf16[64,64,64,64]", "somewhere", 1]],
        "narrow_sums": [["bf16[64,64] -> bf16[64]", "somewhere", 1]],
        "collectives": {"all-reduce": (4, 100)},
        "host_calls": {"xla_ffi_python_gpu_callback": 1},
        "donated": 7,
    }
    for name, value in bad.items():
        for paper in (True, False):
            assert len(broken_bounds(GOOD | {name: value, "paper": paper})) == 1, name
    assert len(broken_bounds(GOOD | {"donated": 13, "arguments": 14})) == 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"traffic": 32.1e9}, "32.1 GB moved, over 32"),
        ({"launches": 1_601}, "1601 launches, over 1600"),
        ({"memory": {"temporary": 3 * GIB}}, "3.00 GiB of temporary memory, over 2.6"),
        ({"memory": {"temporary": 2 * GIB}, "remat": True}, "2.00 GiB of temporary memory"),
        ({"traffic": 61e9, "dtype": "float32"}, "61.0 GB moved, over 60"),
        ({"memory": {"temporary": 6 * GIB}, "dtype": "float32"}, "6.00 GiB of"),
        ({"float32_activations": [26, 1e9]}, "26 launches writing float32 features, over 25"),
        ({"graphs": 116}, "116 CUDA graphs, over 115"),
        ({"outside_graphs": {"Convolution": 381}}, "381 launches outside of CUDA graphs"),
        (SAMPLING | {"launches": 581}, "581 launches, over 580"),
        ({"program": "weights"}, "90 s of processors to compile, over 60"),
    ],
)
def test_every_bound_on_what_the_papers_model_costs_is_seen_to_be_broken(changed, words):
    (line,) = broken_bounds(GOOD | changed)
    assert words in line
    assert broken_bounds(GOOD | changed | {"paper": False}) == []


def test_float32_has_fewer_bounds():
    """Launches are bound in the type in which they are what a small batch waits for."""
    assert broken_bounds(GOOD | {"dtype": "float32", "launches": 2_000, "traffic": 59e9}) == []
