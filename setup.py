"Reads settings.ini, where every dependency and pin lives. `demo`, `dev`, `gpu` ... are extras: pip install -e '.[demo]'"
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini")
cfg = config["DEFAULT"]
EXTRAS = "notebook demo dev bench tune peers mosec grpc gateway llm text faiss openvino gpu rapids tensorrt ray deploy docs".split()

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=cfg["author"],
    keywords=cfg["keywords"],
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={"": ["*.pyi"], cfg["lib_path"]: ["py.typed"], cfg["lib_path"] + ".notebook.panel": ["*.css", "*.js"], cfg["lib_path"] + ".deploy": ["chart/**", "chart/.helmignore", "container/**"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in EXTRAS},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": ["zztoolkit=zztoolkit._modidx:d"]},
)
