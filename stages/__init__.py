"""The stages. Python runs this file first, before any stage imports numpy or torch: both read the environment once."""

from stages.lib.core.portable import set_environment

set_environment()
