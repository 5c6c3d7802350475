// The index of a workgroup. Grids have two dimensions, because one dimension holds at most 65,535 workgroups.
fn flat(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.y * count.x + id.x;
}
