"""Runs a study, prints it, or writes the ledger of it that ships; all have the same options.

python bench/study.py                                     # which studies there are
python bench/study.py contours phantom --labels 5         # runs what is missing of a part
python bench/study.py boosting --table                    # prints what was measured
python bench/study.py blocks --export                     # writes deffi_lab/assets/blockwise.sqlite
"""

import sys

import torch
from run import load, places


def main(words: list[str]) -> int:
    "Hands the options to the study that is named"
    studies = sorted(n for n, p in places().items() if p.parent.name == "studies")
    if not words or words[0] not in studies:
        print(f"{__doc__}\nstudies: {', '.join(studies)}")
        return 0 if not words or words[0] in ("-h", "--help") else 2
    torch.set_num_threads(1)
    return load(words[0]).main(words[1:]) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
