"""From `import deffi_lab` to the first drawn latent map
with shipped weights, in a fresh process each time."""

import statistics
import subprocess
import sys

CODE = """
import time; t = time.perf_counter()
import resource
from deffi_lab.labs.latent.training import latent_map
from deffi_lab.show.render.mpl import to_mpl
from deffi_lab.data.images import mnist
to_mpl(latent_map(mnist())).savefig("/dev/null", format="png")
print(time.perf_counter() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def once() -> tuple[float, float]:
    "Seconds and peak resident MB of one process"
    out = subprocess.run(
        [sys.executable, "-c", CODE], check=True, capture_output=True, text=True
    ).stdout
    seconds, mb = map(float, out.split())
    return seconds, mb


def rows(n: int = 5) -> list[dict]:
    once()  # first use unpacks MNIST
    runs = [once() for _ in range(n)]
    out = []
    for name, column, unit, bound in (
        ("first_map_s", 0, "s", 6),
        ("first_map_rss_mb", 1, "MB", 900),
    ):
        values = [r[column] for r in runs]
        mid = statistics.median(values)
        out.append(
            dict(
                name=name,
                ours=mid,
                peer=bound,
                unit=unit,
                ratio=mid / bound,
                effect="share",
                interval="range",
                low=min(values) / bound,
                high=max(values) / bound,
                n=n,
                note="peer is the bound",
            )
        )
    return out


if __name__ == "__main__":
    print(rows())
