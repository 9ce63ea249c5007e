"""Packages lie in two folders, which setup.cfg has no way to say; all else stands there."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["megatron_r1*"]), *find_packages("kernels")],
    package_dir={"r1_kernels": "kernels/r1_kernels"},
)
