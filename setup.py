"""Maps the folders of the checkout to subpackages of `foredraft`: `engine/loop.py` is `foredraft.engine.loop`.

The folders have no `__init__.py`: a `./kernels/__init__.py` on the path would shadow Hugging Face's `kernels` package, which
transformers looks for. Setuptools does not find such folders by itself, so they are listed here with their subfolders.
"""

from setuptools import find_namespace_packages, setup

DATA = ["results*"]
ROOMS = ("engine", "kernels", "ngram_native", "train", "bench")
FOLDERS = [*ROOMS, *(f"{room}.{inner}" for room in ROOMS for inner in find_namespace_packages(room, exclude=DATA))]

setup(
    packages=["foredraft", "foredraft.cli", "foredraft.cli.bench", "foredraft.cli.training", "foredraft.server",
              "foredraft.assets", *(f"foredraft.{folder}" for folder in FOLDERS)],
    package_dir={
        "foredraft": "foredraft", "foredraft.assets": "assets",
        **{f"foredraft.{folder}": folder.replace(".", "/") for folder in FOLDERS},
    },
    # only the data named here: the automatic search takes the folders of assets for packages
    include_package_data=False,
    package_data={"foredraft.assets": ["*", "**/*"], "foredraft.bench.report": ["*.css"],
                  "foredraft.server": ["page.html"]},
)
