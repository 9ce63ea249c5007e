"""The same functions in Triton. Import a module of this package where Triton runs, and only there:
`r1_kernels.backend.takes_triton` says where."""


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: TRITON_INTERPRET=1."""
    import triton

    return bool(triton.knobs.runtime.interpret)
