"""The version, without the cost of asking the installed metadata."""

VERSION = "0.1.0"
