"""The training kernels of MobileNetV2 for an NVIDIA GPU, in Triton.

They do what `fast_ops.cpp` does on a CPU, in the same way: feature maps are matrices, pixels ×
channels; a norm is numbers per channel, and whoever reads a convolution's output normalises it on
the fly. So only the convolutions' raw outputs are written and kept.

* Values are stored as they come (bfloat16, in tests float32 or float64) and computed as ``REAL``.
* Programs go over a map in strides and gather sums in registers. Each leaves one row of partial
  sums, which a small kernel adds up in float64 (:mod:`.finish`). The same GPU gives the same bits.
* Each number costs few instructions, or the processors would be slower than memory: a depthwise
  kernel goes down strips of two columns, so that what it has normalised serves several outputs, and
  sums stay with the threads until the end. ``EIGHTS``: all channels are multiples of eight, and
  read by sixteen bytes.
* Few are to be compiled: what depends on the size of a batch or a map is known at the launch only.

The kernels: :mod:`.norms`, :mod:`.pointwise` (1×1 convolutions), :mod:`.depthwise`,
:mod:`.depthwise_backward`, :mod:`.stem` and :mod:`.finish`. The sizes of their blocks:
:mod:`.plans`. The calls: :mod:`.launches` and :mod:`.pointwise_launches`, by way of
:mod:`.finishing` and :mod:`.launcher`. What compiles them beforehand: :mod:`.compiling`. All but
this file and :mod:`.plans` need Triton.
"""
