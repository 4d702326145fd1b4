"""Bytes and nothing but bytes: the contract with the BPF programs."""
