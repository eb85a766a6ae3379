"""Tests of oekd_fast; a package so that they can share ``tests.support.oracle``."""
