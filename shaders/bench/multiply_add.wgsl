// Measures the peak rate of multiply-adds without memory access, as a reference for matrix products. Each invocation
// computes 16 numbers and writes their sum. Each number, after p.rounds rounds of x = 0.5 * x + 1, is 2 - (2 - i / 64)
// / 2^rounds.

// [workgroups, 64]
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<uniform> p: Params;

struct Params {
    rounds: u32,
    // 0.5 and 1. They are parameters so that no compiler can compute the result.
    factor: f32,
    summand: f32,
    padding: u32,
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Four independent chains of dependent operations.
    let start = f32(lane) / 64.0;
    var a = vec4(start);
    var b = vec4(start);
    var c = vec4(start);
    var d = vec4(start);
    let factor = vec4(p.factor);
    let summand = vec4(p.summand);
    for (var round = 0u; round < p.rounds; round += 4u) {
        a = fma(a, factor, summand);
        b = fma(b, factor, summand);
        c = fma(c, factor, summand);
        d = fma(d, factor, summand);
        a = fma(a, factor, summand);
        b = fma(b, factor, summand);
        c = fma(c, factor, summand);
        d = fma(d, factor, summand);
        a = fma(a, factor, summand);
        b = fma(b, factor, summand);
        c = fma(c, factor, summand);
        d = fma(d, factor, summand);
        a = fma(a, factor, summand);
        b = fma(b, factor, summand);
        c = fma(c, factor, summand);
        d = fma(d, factor, summand);
    }
    let sum = a + b + c + d;
    out[flat(workgroup, workgroups) * 64u + lane] = sum.x + sum.y + sum.z + sum.w;
}
