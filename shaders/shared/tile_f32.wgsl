// Keeps weights as f32 in shared memory, for every device and every format.

alias TileQuad = vec4<f32>;
