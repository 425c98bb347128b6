from gankernels.ops.spectral_norm.op import spectral_norm

__all__ = ["spectral_norm"]
