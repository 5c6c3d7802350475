// Keeps F16 weights as 16-bit floats in shared memory: half the memory, the same values. Only for the format F16.

alias TileQuad = vec4<f16>;
