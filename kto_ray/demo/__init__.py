"""`kto-ray demo`: the loop closed once before your eyes, its verdict and its report."""
