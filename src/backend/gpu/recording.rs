//! Recording of commands, and their submission.
//!
//! Steps only append commands to a list. A submission encodes the list as one command buffer. The parameters of all its
//! commands share one buffer, with a slot for each command: a queue runs its writes before the commands that are
//! submitted after them, so a slot written twice would hold the second value for both commands.

use super::buffers::Memory;
use super::device::Device;
use super::params;
use super::pipeline::Pipeline;
use crate::error::Result;
use std::collections::HashMap;
use std::sync::Arc;

/// Distance between slots in bytes: an offset alignment that every device supports.
const SLOT: usize = 256;
/// Slots in the initial parameter buffer.
const FIRST_SLOTS: usize = 1024;
/// Number of submissions after which an unused bind group is dropped.
const KEEP_BIND_GROUPS: u64 = 256;

/// One command.
#[derive(Debug)]
enum Command {
    Dispatch {
        pipeline: Arc<Pipeline>,
        bindings: Vec<Memory>,
        /// Byte offset of its parameters.
        params: u32,
        workgroups: [u32; 3],
    },
    Clear(Memory),
    Copy {
        from: Memory,
        offset: u64,
        to: wgpu::Buffer,
        to_offset: u64,
        bytes: u64,
    },
}

/// Commands that are not submitted yet.
#[derive(Debug, Default)]
pub(super) struct Recording {
    commands: Vec<Command>,
    /// The parameters of all commands, one slot each.
    params: Vec<u8>,
    /// The last command, if it is a norm.
    norm: Option<NormCommand>,
}

/// A command of `add_rms_norm` with its operands.
#[derive(Clone, Debug)]
pub(super) struct NormCommand {
    pub(super) residual: Memory,
    pub(super) delta: Memory,
    pub(super) weight: Memory,
    pub(super) out: Memory,
    pub(super) params: params::AddRmsNorm,
}

impl Recording {
    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Records a dispatch of `pipeline`.
    pub(super) fn dispatch(
        &mut self,
        pipeline: Arc<Pipeline>,
        bindings: &[&Memory],
        params: &[u8],
        workgroups: [u32; 3],
    ) {
        assert_eq!(bindings.len(), pipeline.bindings.len(), "{}: buffers", pipeline.name);
        assert_eq!(params.len(), pipeline.params, "{}: bytes of parameters", pipeline.name);
        self.norm = None;
        let at = self.params.len();
        self.params.extend_from_slice(params);
        self.params.resize(at + SLOT, 0);
        self.commands.push(Command::Dispatch {
            pipeline,
            bindings: bindings.iter().map(|&memory| memory.clone()).collect(),
            params: at as u32,
            workgroups,
        });
    }

    /// Marks the last command as a norm, which a fused command may replace.
    pub(super) fn was_norm(&mut self, norm: NormCommand) {
        self.norm = Some(norm);
    }

    /// Removes and returns the last command if it is a norm that `fits` accepts.
    pub(super) fn take_norm(&mut self, fits: impl FnOnce(&NormCommand) -> bool) -> Option<NormCommand> {
        let norm = self.norm.take_if(|norm| fits(norm))?;
        if let Some(Command::Dispatch { params, .. }) = self.commands.pop() {
            self.params.truncate(params as usize);
        }
        Some(norm)
    }

    /// Records zeroing of a buffer.
    pub(super) fn clear(&mut self, memory: &Memory) {
        self.norm = None;
        self.commands.push(Command::Clear(memory.clone()));
    }

    /// Records a copy of bytes between offsets.
    pub(super) fn copy(
        &mut self,
        (from, offset): (&Memory, u64),
        (to, to_offset): (&wgpu::Buffer, u64),
        bytes: u64,
    ) {
        self.norm = None;
        let (from, to) = (from.clone(), to.clone());
        self.commands.push(Command::Copy { from, offset, to, to_offset, bytes });
    }

    /// Whether a recorded command uses `memory`.
    pub(super) fn uses(&self, memory: &Memory) -> bool {
        self.commands.iter().any(|command| match command {
            Command::Dispatch { bindings, .. } => bindings.iter().any(|other| other.id() == memory.id()),
            Command::Clear(other) | Command::Copy { from: other, .. } => other.id() == memory.id(),
        })
    }
}

/// Encodes and submits recordings, and caches objects for reuse.
#[derive(Debug, Default)]
pub(super) struct Submitter {
    params: Option<wgpu::Buffer>,
    /// By layout and buffers, with the last submission that used each.
    bind_groups: HashMap<Vec<u64>, (wgpu::BindGroup, u64)>,
    submissions: u64,
    last: Option<wgpu::SubmissionIndex>,
    dispatches: u64,
}

impl Submitter {
    /// Number of submissions so far.
    pub(super) fn submissions(&self) -> u64 {
        self.submissions
    }

    /// The last submission.
    pub(super) fn last(&self) -> Option<wgpu::SubmissionIndex> {
        self.last.clone()
    }

    /// Number of dispatches so far.
    pub(super) fn dispatches(&self) -> u64 {
        self.dispatches
    }

    /// Submits all recorded commands.
    ///
    /// # Errors
    /// The first error of the device so far.
    pub(super) fn submit(&mut self, device: &Device, recording: &mut Recording) -> Result<()> {
        if recording.is_empty() {
            return device.check();
        }
        let Recording { commands, params, .. } = std::mem::take(recording);
        self.write_params(device, &params);
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut commands = commands.iter().peekable();
        while let Some(command) = commands.peek() {
            match command {
                Command::Dispatch { .. } => {
                    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                    while let Some(Command::Dispatch { pipeline, bindings, params, workgroups }) =
                        commands.next_if(|command| matches!(command, Command::Dispatch { .. }))
                    {
                        let group = self.bind_group(device, pipeline, bindings);
                        pass.set_pipeline(&pipeline.pipeline);
                        pass.set_bind_group(0, &group, &[*params]);
                        pass.dispatch_workgroups(workgroups[0], workgroups[1], workgroups[2]);
                        self.dispatches += 1;
                    }
                }
                Command::Clear(memory) => {
                    encoder.clear_buffer(memory.buffer(), 0, None);
                    commands.next();
                }
                Command::Copy { from, offset, to, to_offset, bytes } => {
                    encoder.copy_buffer_to_buffer(from.buffer(), *offset, to, *to_offset, *bytes);
                    commands.next();
                }
            }
        }
        self.last = Some(device.queue.submit([encoder.finish()]));
        self.submissions += 1;
        let submissions = self.submissions;
        if submissions.is_multiple_of(KEEP_BIND_GROUPS) {
            self.bind_groups.retain(|_, (_, used)| submissions - *used < KEEP_BIND_GROUPS);
        }
        device.check()
    }

    fn write_params(&mut self, device: &Device, params: &[u8]) {
        if params.is_empty() {
            return;
        }
        if self.params.as_ref().is_none_or(|buffer| buffer.size() < params.len() as u64) {
            // Cached bind groups refer to the old buffer.
            self.bind_groups.clear();
            if let Some(old) = self.params.take() {
                old.destroy();
            }
            let size = params.len().next_power_of_two().max(FIRST_SLOTS * SLOT) as u64;
            self.params = Some(device.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("parameters"),
                size,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }));
        }
        if let Some(buffer) = &self.params {
            device.queue.write_buffer(buffer, 0, params);
        }
    }

    fn bind_group(&mut self, device: &Device, pipeline: &Pipeline, bindings: &[Memory]) -> wgpu::BindGroup {
        let mut key = Vec::with_capacity(bindings.len() + 1);
        key.push(pipeline.layout_id);
        key.extend(bindings.iter().map(Memory::id));
        let entry = self.bind_groups.entry(key).or_insert_with(|| {
            let params = self.params.as_ref().expect("written before");
            let params = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: params,
                offset: 0,
                size: wgpu::BufferSize::new(pipeline.params as u64),
            });
            let entries: Vec<_> = bindings
                .iter()
                .map(|memory| memory.buffer().as_entire_binding())
                .chain([params])
                .zip(0..)
                .map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource })
                .collect();
            let descriptor =
                wgpu::BindGroupDescriptor { label: None, layout: &pipeline.layout, entries: &entries };
            (device.device.create_bind_group(&descriptor), 0)
        });
        entry.1 = self.submissions;
        entry.0.clone()
    }
}

impl Drop for Submitter {
    fn drop(&mut self) {
        if let Some(params) = &self.params {
            params.destroy();
        }
    }
}
