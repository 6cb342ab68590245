"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """The version, or `0.0.0` for a source tree that is not installed."""
    try:
        return version("apex-reward")
    except PackageNotFoundError:
        return "0.0.0"
