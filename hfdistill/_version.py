"""The version of the package, read by the build and by every file that a run writes."""

__version__ = "0.1.0"
