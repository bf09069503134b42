"""Comparisons with sums over every path."""

import math

import torch


def close(values, expected, scale):
    """To 1e-10 of the sum of the terms' magnitudes."""
    difference = (values - torch.tensor(expected, dtype=torch.float64)).abs()
    assert (difference <= 1e-10 * torch.tensor(scale, dtype=torch.float64)).all()


def close_sums(values, terms):
    """That each is the sum of its terms."""
    magnitudes = [math.fsum(map(abs, each)) for each in terms]
    close(values, [math.fsum(each) for each in terms], magnitudes)
