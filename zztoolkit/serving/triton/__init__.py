"Archives as models of NVIDIA Triton: its model repository and its Python backend"
