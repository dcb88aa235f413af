"""Maps the folders of the checkout to subpackages of foredraft.

The folders have no `__init__.py`: a `./kernels/__init__.py` on the path would shadow Hugging Face's `kernels` package, which
transformers looks for. So the mapping is spelled out here, subfolders included.
"""

from setuptools import find_namespace_packages, setup

ROOMS = ("engine", "kernels", "ngram_native", "train", "bench")
FOLDERS = [folder for room in ROOMS for folder in (room, *(f"{room}.{inner}" for inner in find_namespace_packages(room)))]

setup(
    packages=["foredraft", "foredraft.cli", "foredraft.assets", *(f"foredraft.{folder}" for folder in FOLDERS)],
    package_dir={
        "foredraft": "foredraft", "foredraft.assets": "assets",
        **{f"foredraft.{folder}": folder.replace(".", "/") for folder in FOLDERS},
    },
    # only what is named here; the automatic search takes the folders of assets for forgotten packages
    include_package_data=False,
    package_data={"foredraft.assets": ["*", "**/*"]},
)
