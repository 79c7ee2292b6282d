"""Mechanism: process table, KV pager, scheduler; ids in, ids out; never imports torch."""
