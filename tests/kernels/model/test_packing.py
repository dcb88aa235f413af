"""Packed and quantised weights: what they hold, and outputs taken from them."""

import numpy as np
import pytest

from foredraft.kernels.model.packing import (
    inputs_of,
    integers,
    pack,
    quantize_int4,
    quantize_int8,
    take_outputs,
    unpack,
    widen,
)

QUANTIZE = {"int8": quantize_int8, "int4": quantize_int4}


def matrix(N, K, seed=1):
    return np.random.default_rng(seed).standard_normal((N, K)).astype(np.float32)


@pytest.mark.parametrize("N", [16, 33])
def test_unpack_inverts_pack(N):
    assert (unpack(pack(matrix(N, 7)), N) == matrix(N, 7)).all()


def test_int8_is_within_half_a_step():
    weights = matrix(33, 24)
    weights[7] = 0.0
    weights[8] *= 1e-3
    error = np.abs(unpack(widen(quantize_int8(weights)), 33) - weights).max(1)
    assert (error <= np.abs(weights).max(1) / 127 * 0.501).all()
    assert error[7] == 0.0


def test_int4_is_within_a_step_of_its_group():
    weights = matrix(33, 96)
    weights[7, 32:64] = 0.0
    weights[8, :32] *= 1e-3
    error = np.abs(unpack(widen(quantize_int4(weights)), 33) - weights).reshape(33, 3, 32)
    largest = np.abs(weights).reshape(33, 3, 32).max(-1)
    # -8 steps span the largest weight; one of the other sign may be cut from 8 steps to 7
    assert (error.max(-1) <= largest / 7 * 1.01).all()
    assert (np.sqrt((error**2).mean(-1)) <= largest / 8 * 0.35).all()
    assert (error[7, 1] == 0).all()


def test_the_integers_of_int4_are_those_that_were_stored():
    scale = np.float32(0.5)
    whole = np.random.default_rng(0).integers(-8, 8, (48, 64))
    whole[:, ::32] = -8
    values, scales = integers(quantize_int4(whole * scale))
    assert (scales == scale).all() and (values == whole).all()


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "int4"])
def test_taken_outputs_keep_their_values(storage):
    weights = matrix(100, 64)
    packed = QUANTIZE[storage](weights) if storage in QUANTIZE else pack(
        weights if storage == "float32" else (weights.view(np.uint32) >> 16).astype(np.uint16))
    outputs = np.array([99, 0, 17, 17, 63] * 5)
    taken = take_outputs(packed, outputs)
    assert taken.dtype == packed.dtype and inputs_of(taken) == 64 and len(taken) == 2
    np.testing.assert_array_equal(unpack(widen(taken), len(outputs)), unpack(widen(packed), 100)[outputs])


@pytest.mark.parametrize("storage, K", [("int8", 33), ("int4", 48)])
def test_sizes_that_a_storage_cannot_hold(storage, K):
    with pytest.raises(ValueError, match=f"{storage} needs .* not {K}"):
        QUANTIZE[storage](matrix(4, K))
