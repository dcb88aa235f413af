"""The five folders of the checkout are subpackages of foredraft.

None of them has an `__init__.py`: a `./kernels/__init__.py` on the path would shadow Hugging Face's `kernels` package,
which transformers looks for. So the mapping is spelled out here, and `foredraft/__init__.py` finds the folders when it
runs from the checkout (bare or as an editable install).
"""

from setuptools import setup

ROOMS = ("engine", "kernels", "ngram_native", "train", "bench", "assets")

setup(
    packages=["foredraft", *(f"foredraft.{room}" for room in ROOMS)],
    package_dir={"foredraft": "foredraft", **{f"foredraft.{room}": room for room in ROOMS}},
    # only what is named here; the automatic search takes the folders of assets for forgotten packages
    include_package_data=False,
    package_data={"foredraft.assets": ["*", "**/*"]},
)
