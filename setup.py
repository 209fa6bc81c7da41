"""Reads settings.ini, which nbdev owns, so that names and versions are written once."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="], interpolation=None)
cfg.read(here / "settings.ini", encoding="utf-8")
c = cfg["DEFAULT"]
extras = {k.removesuffix("_requirements"): c[k].split() for k in c if k.endswith("_requirements")}
extras["all"] = sorted({r for name, rs in extras.items() if name != "dev" for r in rs})

setup(
    name=c["lib_name"],
    version=c["version"],
    description=c["description"],
    author=c["author"],
    license="Apache-2.0",
    python_requires=f">={c['min_python']}",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["deffi_lab", "deffi_lab.*"]),
    package_data={"deffi_lab": ["py.typed", "static/*", "assets/*"]},
    include_package_data=False,
    zip_safe=False,
    install_requires=c["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": ["deffi-lab=deffi_lab.cli:main"],
        "nbdev": ["deffi_lab=deffi_lab._modidx:d"],
    },
)
