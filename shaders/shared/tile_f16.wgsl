// Weights in shared memory as the 16-bit floats that they are: half the room, the same values. Only for the format F16.

alias TileQuad = vec4<f16>;
