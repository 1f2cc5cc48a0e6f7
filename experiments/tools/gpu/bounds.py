"""What a program for a GPU may cost, and what it must be."""

from typing import Any

GIB = 2**30

# The paper's model, batch 64, 64 pixels, on one H100: gigabytes moved and launches an update, or a
# call of the network in sampling; GiB of temporary memory, plain and rematerialized; launches that
# write float32 features, CUDA graphs, and launches outside of them; and seconds of all processors
# together to compile. The weights' are what two cores have in 30 s: by the clock a busy machine
# would break the bound.
PAPER: dict[tuple[str, str], dict[str, float]] = {
    ("train", "bfloat16"): {
        **{"traffic": 32, "launches": 1600, "temporary": 2.6, "remat": 1.2},
        **{"float32": 25, "graphs": 115, "outside": 380},
    },
    ("train", "float32"): {"traffic": 60, "temporary": 5},
    ("sample", "bfloat16"): {"launches": 580, "float32": 0, "graphs": 55, "outside": 75},
    ("weights", "bfloat16"): {"seconds": 60},
    ("weights", "float32"): {"seconds": 60},
}
# Of one dispatch of the train step: the host hands each over, every time.
STATE_ARRAYS = 12


def _costs(row: dict[str, Any]) -> list[str]:
    """The bounds of the paper's model that are broken."""
    bounds = PAPER.get((row["program"], row["dtype"]), {}) if row["paper"] else {}
    costs = {
        "temporary": (row["memory"]["temporary"] / GIB, "{:.2f} GiB of temporary memory"),
        "seconds": (row["compile_processor_seconds"], "{:.0f} s of processors to compile"),
        "traffic": (row["traffic"] / 1e9, "{:.1f} GB moved"),
        "launches": (row["launches"], "{:.0f} launches"),
        "float32": (row["float32_activations"][0], "{:.0f} launches writing float32 features"),
        "graphs": (row["graphs"], "{} CUDA graphs"),
        "outside": (sum(row["outside_graphs"].values()), "{} launches outside of CUDA graphs"),
    }
    if row["remat"]:  # what is computed again costs everything else, for memory
        costs = {"remat": costs["temporary"]}
    return [
        f"{words.format(cost)}, over {bounds[name]}"
        for name, (cost, words) in costs.items()
        if cost > bounds.get(name, cost)
    ]


def _training(row: dict[str, Any]) -> list[str]:
    """The bounds on a dispatch of the train step that are broken."""
    broken = []
    want, found = row["attentions"], row["fused_attentions"]
    if want and (found["backward"] != want or found["forward"] < want):
        broken.append(f"fused attentions {found}, not {want} forward and backward")
    arrays = row["arguments"] - 1  # the images
    if arrays > STATE_ARRAYS:
        broken.append(f"{arrays} arrays of the state a dispatch, over {STATE_ARRAYS}")
    if row["donated"] != arrays:
        broken.append(f"{row['donated']} of {arrays} arrays of the state donated")
    if 0 in row["loops"]:
        broken.append("a loop of which the compiler does not know how often it runs")
    return broken


def broken_bounds(row: dict[str, Any]) -> list[str]:
    """What a program ought to have and has not, one line each.

    The bounds on what it costs are for the paper's model at batch 64 on one H100, the others for
    all.

    Args:
      row: from `gpu_report.report_row`.
    """
    broken = _costs(row)
    if row["program"] in ("train", "scan"):
        broken += _training(row)
    if row["program"] == "sample" and row["fused_attentions"]["forward"] < row["attentions"]:
        broken.append(f"fused attentions {row['fused_attentions']}, not {row['attentions']}")
    if row["convolutions_not_nhwc"] or "XLA" in row["convolutions"]:
        broken.append("convolutions that are not cuDNN's on NHWC")
    if row["transposes"]:
        broken.append(f"{len(row['transposes'])} transposes of activations")
    if row["narrow_sums"]:
        broken.append(f"{len(row['narrow_sums'])} sums in less than float32")
    if row["host_calls"]:
        broken.append(f"calls to the host: {row['host_calls']}")
    collectives = row["collectives"]
    if collectives.keys() - {"all-reduce"} or collectives.get("all-reduce", (0,))[0] > 1:
        broken.append(f"more than one all-reduce: {collectives}")
    where = f"{row['program']}, {row['devices']} device(s), batch {row['batch']}"
    return [f"{where}: {line}" for line in broken]
