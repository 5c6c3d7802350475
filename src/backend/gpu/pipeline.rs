//! Compiled kernels, cached after first use.

use super::device::Device;
use super::kernels::{Access, Kernel};
use super::select::KernelChoice;
use crate::error::Result;
use std::collections::HashMap;
use std::sync::Arc;

/// A compiled kernel with its constants.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) name: &'static str,
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    /// Equal for pipelines that can share bind groups.
    pub(super) layout_id: u64,
    pub(super) bindings: &'static [Access],
    pub(super) params: usize,
}

type LayoutKey = (&'static [Access], usize);

/// The compiled kernels of a device.
#[derive(Debug, Default)]
pub(super) struct Pipelines {
    modules: HashMap<&'static str, wgpu::ShaderModule>,
    layouts: HashMap<LayoutKey, (wgpu::BindGroupLayout, u64)>,
    pipelines: HashMap<KernelChoice, Arc<Pipeline>>,
}

impl Pipelines {
    /// The pipeline of `choice`.
    ///
    /// # Errors
    /// `shader_error` if the device rejects the kernel. In a browser this is known only when the device settles.
    pub(super) fn get(&mut self, device: &Device, choice: KernelChoice) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = self.pipelines.get(&choice) {
            return Ok(pipeline.clone());
        }
        let pipeline = device.compiling(choice.kernel().name, || Arc::new(self.compile(device, &choice)));
        device.check()?;
        self.pipelines.insert(choice, pipeline.clone());
        Ok(pipeline)
    }

    fn compile(&mut self, device: &Device, choice: &KernelChoice) -> Pipeline {
        let kernel = choice.kernel();
        let (layout, layout_id) = self.layout(device, kernel);
        let module = self.modules.entry(kernel.name).or_insert_with(|| {
            device.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(kernel.name),
                source: wgpu::ShaderSource::Wgsl(device.source(kernel)),
            })
        });
        let pipeline_layout = device.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&layout)],
            ..Default::default()
        });
        let constants: Vec<(&str, f64)> =
            choice.constants().iter().map(|&(name, value)| (name, f64::from(value))).collect();
        let pipeline = device.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&pipeline_layout),
            module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // Every kernel writes its shared memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        Pipeline {
            name: kernel.name,
            pipeline,
            layout,
            layout_id,
            bindings: kernel.bindings,
            params: kernel.params,
        }
    }

    fn layout(&mut self, device: &Device, kernel: &Kernel) -> (wgpu::BindGroupLayout, u64) {
        let next_id = self.layouts.len() as u64;
        let entry = self.layouts.entry((kernel.bindings, kernel.params)).or_insert_with(|| {
            let storage = kernel.bindings.iter().map(|&access| wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: access == Access::Read },
                has_dynamic_offset: false,
                min_binding_size: None,
            });
            let params = wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: true,
                min_binding_size: wgpu::BufferSize::new(kernel.params as u64),
            };
            let entries: Vec<_> = storage
                .chain([params])
                .zip(0..)
                .map(|(ty, binding)| wgpu::BindGroupLayoutEntry {
                    binding,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty,
                    count: None,
                })
                .collect();
            let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
            (device.device.create_bind_group_layout(&descriptor), next_id)
        });
        entry.clone()
    }
}
