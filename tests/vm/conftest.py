"""Tests of the lanes run on the host; those in `guest` only ever run in one."""

collect_ignore = ["guest"]
