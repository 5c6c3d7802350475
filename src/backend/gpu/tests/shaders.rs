//! Tests of the shader sources without a device: they are valid and match the host's declarations.

use super::super::kernels::{Access, Kernel, MULTIPLY_ADD, all, without_comments};
use super::super::params;
use super::super::segments::Entry;
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{AddressSpace, Module, StorageAccess, TypeInner};
use std::collections::BTreeSet;

/// Limits that every WebGPU device supports.
const MOST_STORAGE_BUFFERS: usize = 8;
const MOST_INVOCATIONS: u32 = 256;
const MOST_SHARED_BYTES: u32 = 16 << 10;

fn parse(kernel: &Kernel) -> Module {
    naga::front::wgsl::parse_str(kernel.source)
        .unwrap_or_else(|error| panic!("{}", error.emit_to_string_with_path(kernel.source, kernel.name)))
}

/// Names and offsets of the parameter fields on the host.
fn host_fields(kernel: &Kernel) -> &'static [(&'static str, usize)] {
    match kernel.stem {
        name if name.ends_with(".matvec") || name.ends_with(".matmul") => params::Linear::FIELDS,
        name if name.starts_with("attention.") => params::Attention::FIELDS,
        "linear_int8.quantize" => params::Quantize::FIELDS,
        "linear_int8.round_trip" => params::RoundTrip::FIELDS,
        "embed" => params::Embed::FIELDS,
        "add_rms_norm" => params::AddRmsNorm::FIELDS,
        "add_rms_norm.quantize" => params::AddRmsNormQuantize::FIELDS,
        "rope_and_append_kv" => params::RopeAndAppendKv::FIELDS,
        "gate" => params::Gate::FIELDS,
        "argmax" => params::Argmax::FIELDS,
        "top_k" => params::TopK::FIELDS,
        "gram" => params::Gram::FIELDS,
        "bench/multiply_add" => params::MultiplyAdd::FIELDS,
        other => panic!("no parameters are known for {other}"),
    }
}

#[test]
fn texts_are_valid_and_keep_to_the_limits_of_every_device() {
    for kernel in all().chain([&MULTIPLY_ADD]) {
        let module = parse(kernel);
        // Only WebGPU's core, which includes unpacking f16, and the capability in a variant's name.
        let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        capabilities.set(Capabilities::SUBGROUP, kernel.name.ends_with(".subgroups"));
        capabilities.set(Capabilities::SHADER_FLOAT16, kernel.name.ends_with(".half"));
        let mut validator = Validator::new(ValidationFlags::all(), capabilities);
        validator.subgroup_stages(ShaderStages::COMPUTE).subgroup_operations(SubgroupOperationSet::all());
        if let Err(error) = validator.validate(&module) {
            panic!("{}: {}", kernel.name, error.emit_to_string(kernel.source));
        }
        let [entry] = &module.entry_points[..] else { panic!("{}: expected one entry point", kernel.name) };
        assert_eq!(entry.name, "main");
        let invocations: u32 = entry.workgroup_size.iter().product();
        assert!(invocations <= MOST_INVOCATIONS, "{}: {invocations} invocations", kernel.name);
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let shared: u32 = module
            .global_variables
            .iter()
            .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
            .map(|(_, variable)| layouter[variable.ty].size)
            .sum();
        assert!(shared <= MOST_SHARED_BYTES, "{}: {shared} shared bytes", kernel.name);
    }
}

#[test]
fn bindings_and_parameters_are_those_that_the_host_assumes() {
    for kernel in all().chain([&MULTIPLY_ADD]) {
        let module = parse(kernel);
        let mut storage = Vec::new();
        for (_, variable) in module.global_variables.iter() {
            let Some(binding) = &variable.binding else { continue };
            assert_eq!(binding.group, 0, "{}", kernel.name);
            match variable.space {
                AddressSpace::Storage { access } => {
                    let access =
                        if access.contains(StorageAccess::STORE) { Access::Write } else { Access::Read };
                    storage.push((binding.binding as usize, access));
                    check_table(kernel, &module, variable.ty);
                }
                AddressSpace::Uniform => {
                    assert_eq!(binding.binding as usize, kernel.bindings.len(), "{}", kernel.name);
                    let TypeInner::Struct { members, span } = &module.types[variable.ty].inner else {
                        panic!("{}: expected a struct of parameters", kernel.name)
                    };
                    assert_eq!(*span as usize, kernel.params, "{}: bytes of parameters", kernel.name);
                    let fields: Vec<_> = members
                        .iter()
                        .map(|member| (member.name.as_deref().unwrap(), member.offset as usize))
                        .collect();
                    assert_eq!(fields, host_fields(kernel), "{}", kernel.name);
                }
                other => panic!("{}: unexpected binding in {other:?}", kernel.name),
            }
        }
        storage.sort_by_key(|&(binding, _)| binding);
        let expected: Vec<_> = kernel.bindings.iter().copied().enumerate().collect();
        assert_eq!(storage, expected, "{}", kernel.name);
        assert!(storage.len() <= MOST_STORAGE_BUFFERS, "{}", kernel.name);
    }
}

/// A buffer of structs must be the segment table, as the host writes it.
fn check_table(kernel: &Kernel, module: &Module, buffer: naga::Handle<naga::Type>) {
    let TypeInner::Array { base, stride, .. } = module.types[buffer].inner else {
        panic!("{}: expected an array as buffer", kernel.name)
    };
    let TypeInner::Struct { members, .. } = &module.types[base].inner else { return };
    let fields: Vec<_> =
        members.iter().map(|member| (member.name.as_deref().unwrap(), member.offset as usize)).collect();
    assert_eq!(fields, Entry::FIELDS, "{}", kernel.name);
    assert_eq!(stride as usize, size_of::<Entry>(), "{}", kernel.name);
}

#[test]
fn every_shader_is_a_kernel_or_a_piece_of_one() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let stems = |folder: std::path::PathBuf| -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let shaders = entries.filter(|path| path.extension().is_some_and(|e| e == "wgsl"));
        shaders.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let kernels: BTreeSet<String> = all().map(|kernel| kernel.stem.to_owned()).collect();
    assert_eq!(stems(root.clone()), kernels);
    for piece in stems(root.join("shared")) {
        let text = std::fs::read_to_string(root.join("shared").join(format!("{piece}.wgsl"))).unwrap();
        let mut code = vec![0; text.len()];
        let len = without_comments(&text, &mut code);
        code.truncate(len);
        let code = String::from_utf8(code).unwrap();
        assert!(all().any(|kernel| kernel.source.contains(&code)), "no kernel uses {piece}");
    }
}

#[test]
fn comments_go_and_lines_stay() {
    let text = "// What it is: a / b.\nlet a = b / c; // of all\n\n    // [rows]\nreturn a;//";
    let expected = "\nlet a = b / c; \n\n    \nreturn a;";
    let mut code = vec![0; expected.len()];
    assert_eq!(without_comments(text, &mut code), expected.len());
    assert_eq!(std::str::from_utf8(&code), Ok(expected));
}
