"""The TensorFlow operations that a tf_keras `.keras` file may use, which compute without side effects.

A functional tf_keras model that calls TensorFlow (`tf.concat(...)`, `x + y`) is saved with the operations' public
names, and loading it calls them with the file's arguments. No safe mode of Keras's asks which they are: `io.write_file`
writes, `py_function` and `map_fn` call, `load_library` loads. So: these, and no others.
"""

from __future__ import annotations

import sys
from typing import Any

_PURE = {
    "": """
        approx_top_k argsort as_string batch_to_space bitcast boolean_mask broadcast_dynamic_shape broadcast_to
        cast clip_by_global_norm clip_by_norm clip_by_value complex concat convert_to_tensor dynamic_partition
        dynamic_stitch edit_distance einsum ensure_shape expand_dims extract_volume_patches fingerprint gather
        gather_nd histogram_fixed_width histogram_fixed_width_bins identity identity_n meshgrid norm one_hot
        ones_like pad parallel_stack rank realdiv repeat reshape reverse reverse_sequence roll saturate_cast
        scatter_nd searchsorted sequence_mask shape shape_n size slice sort space_to_batch space_to_batch_nd
        split squeeze stack stop_gradient strided_slice tensor_scatter_nd_add tensor_scatter_nd_max
        tensor_scatter_nd_min tensor_scatter_nd_sub tensor_scatter_nd_update tensordot tile transpose
        truncatediv truncatemod unique unique_with_counts unravel_index unstack where zeros_like
    """,
    "math": """
        abs accumulate_n acos acosh add add_n angle argmax argmin asin asinh atan atan2 atanh bessel_i0
        bessel_i0e bessel_i1 bessel_i1e betainc bincount ceil confusion_matrix conj cos cosh count_nonzero
        cumprod cumsum cumulative_logsumexp digamma divide divide_no_nan equal erf erfc erfcinv erfinv exp expm1
        floor floordiv floormod greater greater_equal igamma igammac imag in_top_k invert_permutation is_finite
        is_inf is_nan is_non_decreasing is_strictly_increasing l2_normalize lbeta less less_equal lgamma log
        log1p log_sigmoid log_softmax logical_and logical_not logical_or logical_xor maximum minimum mod
        multiply multiply_no_nan ndtri negative nextafter not_equal polygamma polyval pow real reciprocal
        reciprocal_no_nan reduce_all reduce_any reduce_euclidean_norm reduce_logsumexp reduce_max reduce_mean
        reduce_min reduce_prod reduce_std reduce_sum reduce_variance rint round rsqrt scalar_mul segment_max
        segment_mean segment_min segment_prod segment_sum sigmoid sign sin sinh sobol_sample softmax softplus
        softsign sqrt square squared_difference subtract tan tanh top_k truediv unsorted_segment_max
        unsorted_segment_mean unsorted_segment_min unsorted_segment_prod unsorted_segment_sqrt_n
        unsorted_segment_sum xdivy xlog1py xlogy zero_fraction zeta
    """,
    "nn": """
        atrous_conv2d atrous_conv2d_transpose avg_pool avg_pool1d avg_pool2d avg_pool3d
        batch_norm_with_global_normalization batch_normalization bias_add conv1d conv1d_transpose conv2d
        conv2d_transpose conv3d conv3d_transpose conv_transpose convolution crelu depth_to_space
        depthwise_conv2d dilation2d dropout elu embedding_lookup erosion2d gelu in_top_k l2_loss l2_normalize
        leaky_relu local_response_normalization log_poisson_loss log_softmax lrn max_pool max_pool1d max_pool2d
        max_pool3d max_pool_with_argmax moments pool relu relu6 selu separable_conv2d sigmoid
        sigmoid_cross_entropy_with_logits silu softmax softmax_cross_entropy_with_logits softplus softsign
        space_to_batch space_to_depth sparse_softmax_cross_entropy_with_logits sufficient_statistics swish tanh
        top_k weighted_cross_entropy_with_logits weighted_moments with_space_to_batch zero_fraction
    """,
    "linalg": """
        adjoint band_part cholesky cholesky_solve cross det diag diag_part eig eigh eigvals eigvalsh einsum expm
        global_norm inv l2_normalize logdet logm lstsq lu matmul matrix_rank matrix_transpose matvec norm
        normalize pinv qr set_diag slogdet solve sqrtm svd tensor_diag tensor_diag_part tensordot trace
        triangular_solve
    """,
    "signal": """
        dct fft fft2d fft3d fftnd fftshift frame idct ifft ifft2d ifft3d ifftnd ifftshift inverse_mdct
        inverse_stft irfft irfft2d irfft3d irfftnd mdct mfccs_from_log_mel_spectrograms overlap_and_add rfft
        rfft2d rfft3d rfftnd stft
    """,
    "bitwise": "bitwise_and bitwise_or bitwise_xor invert left_shift right_shift",
    "image": """
        adjust_brightness adjust_contrast adjust_gamma adjust_hue adjust_saturation central_crop
        convert_image_dtype crop_and_resize crop_to_bounding_box extract_glimpse extract_patches flip_left_right
        flip_up_down grayscale_to_rgb hsv_to_rgb image_gradients pad_to_bounding_box per_image_standardization
        psnr resize resize_with_crop_or_pad resize_with_pad rgb_to_grayscale rgb_to_hsv rgb_to_yiq rgb_to_yuv
        rot90 sobel_edges ssim ssim_multiscale total_variation transpose yiq_to_rgb yuv_to_rgb
    """,
    "strings": """
        as_string bytes_split join length lower ngrams reduce_join regex_full_match regex_replace split strip
        substr to_hash_bucket to_hash_bucket_fast to_hash_bucket_strong to_number upper
    """,
    "__operators__": "add eq getitem ne ragged_getitem",
    "keras.backend": """
        abs all any argmax argmin batch_dot batch_flatten bias_add binary_crossentropy cast
        categorical_crossentropy clip concatenate cos cumprod cumsum dot elu equal exp expand_dims flatten
        gather greater greater_equal hard_sigmoid l2_normalize less less_equal log max maximum mean min minimum
        not_equal one_hot ones_like permute_dimensions pow prod relu repeat repeat_elements reshape
        resize_images reverse round shape sigmoid sign sin softmax softplus softsign
        sparse_categorical_crossentropy sqrt square squeeze stack std stop_gradient sum tanh tile transpose var
        zeros_like
    """,
    "keras.activations": """
        elu exponential gelu hard_sigmoid linear mish relu selu sigmoid softmax softplus softsign swish tanh
    """,
    # What a ragged or sparse tensor is asked for, and how a ragged one is made.
    "RaggedTensor": """
        bounding_shape dense_shape flat_values from_nested_row_lengths from_nested_row_splits from_row_lengths
        from_row_limits from_row_splits from_row_starts from_sparse from_tensor from_uniform_row_length
        from_value_rowids indices merge_dims nested_row_lengths nested_row_splits nested_value_rowids nrows
        row_lengths row_limits row_splits row_starts to_sparse to_tensor value_rowids values with_flat_values
        with_row_splits_dtype with_values
    """,
}
_NAMES = {f"{space}.{name}".lstrip(".") for space, names in _PURE.items() for name in names.split()}


def is_pure(symbol: Any) -> bool:
    """Return whether this is the public name, as tf_keras writes it, of an operation without side effects.

    >>> is_pure("math.add"), is_pure("compat.v1.transpose"), is_pure("io.write_file")
    (True, True, False)
    """
    return isinstance(symbol, str) and symbol.removeprefix("compat.v1.") in _NAMES


def is_operation(thing: Any) -> bool:
    """Return, without importing TensorFlow, whether this function is an operation without side effects.

    >>> import tensorflow as tf
    >>> is_operation(tf.nn.relu6), is_operation(tf.io.write_file)
    (True, False)
    """
    tensorflow, name = sys.modules.get("tensorflow"), str(getattr(thing, "__name__", ""))
    for symbol in _NAMES:
        space, _, last = symbol.rpartition(".")
        if last == name and not space.startswith("keras"):
            home = getattr(tensorflow, space, None) if space else tensorflow
            if getattr(home, name, None) is thing:
                return True
    return False
