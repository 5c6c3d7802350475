// Workgroups in two dimensions, because one has at most 65,535.
fn flat(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.y * count.x + id.x;
}
