"""PS-FCN and LCNet: "Deep Photometric Stereo for Non-Lambertian Surfaces" (TPAMI 2020), arXiv:2007.13145."""
