// Weights in shared memory as floats: for every device and every format.

alias TileQuad = vec4<f32>;
