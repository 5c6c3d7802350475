//! Splits a WebAssembly module in two: a first module that works alone, and a later one that is loaded on demand.
//!
//! Both share memory, table and stack, so each can use the other's objects. The later module has every function that only the
//! given exports reach, and the data that only those functions reference. The first module keeps these exports as stubs that call
//! through the table. Table entries of later functions are empty until the later module fills them.
//!
//! No function can be called too early, because the first module is closed: it has everything that its own exports reach by calls,
//! by table indices in code or data ([`Links`]), and by data addresses. None of its code refers to
//! the later module, except the stubs, and callers of the stubs load the later module first. Linking checks that both come from
//! one build: the later module imports a memory whose name is the digest of both.
//!
//! `links.rs` reads the linker's relocations. `pkg-templates/src/host/modules.ts` loads the later module.

use crate::links::{Links, Named};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use walrus::ir::{Value, Visitor, dfs_in_order};
use walrus::passes::gc;
use walrus::{
    ConstExpr, DataKind, ElementItems, ElementKind, ExportId, ExportItem, FunctionBuilder, FunctionId,
    FunctionKind, GlobalKind, ImportKind, ImportedFunction, Module, TableId,
};

/// The import module name of the first module.
const FIRST: &str = "first";

/// Runs of data this close are joined: a data segment has an overhead of eight bytes.
const CLOSE: u32 = 8;

/// The two modules.
pub struct Parts {
    pub first: Vec<u8>,
    pub later: Vec<u8>,
}

/// Splits `whole`. `functions` maps function indices of the linked module; `is_later` tells which exports
/// belong to the later module.
///
/// # Errors
/// A module that compilers and bindings do not produce.
pub fn split(
    mut whole: Module,
    links: &Links,
    functions: &[FunctionId],
    is_later: impl Fn(&str) -> bool,
) -> Result<Parts> {
    let table = function_table(&whole)?;
    let stubs = put_stubs(&mut whole, table, is_later)?;
    let reached = Reached::from_exports(&whole, table, links, functions, &stubs)?;
    let later_data: Vec<Range<u32>> = (links.data.iter().enumerate())
        .filter(|(index, _)| !reached.data.contains(index))
        .map(|(_, data)| data.addresses.clone())
        .collect();
    // In a copy, items are found by their export names.
    let shared = export_shared(&mut whole, &reached);
    let bytes = whole.emit_wasm();

    let mut later = Module::from_buffer(&bytes)?;
    keep_later(&mut later, &shared, &later_data)?;
    let mut wanted = HashMap::new();
    let digest = digest(&bytes);
    for (number, import) in later.imports.iter_mut().enumerate() {
        let name = match import.kind {
            ImportKind::Memory(_) => digest.clone(),
            _ => number.to_string(),
        };
        wanted.insert(std::mem::replace(&mut import.name, name.clone()), name);
    }
    for (old, export) in shared {
        match wanted.remove(&old) {
            Some(name) => whole.exports.get_mut(export).name = name,
            None => whole.exports.delete(export),
        }
    }
    let table_of_first = |function| reached.functions.contains(&function);
    keep_slots(&mut whole, table, table_of_first)?;
    keep_data(&mut whole, |segment| without(segment, &later_data))?;
    gc::run(&mut whole);
    Ok(Parts { first: whole.emit_wasm(), later: later.emit_wasm() })
}

fn function_table(module: &Module) -> Result<TableId> {
    module.tables.main_function_table()?.context("expected a table of functions")
}

fn digest(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Appends the functions of the later exports to the table, returns their indices, and exports stubs that
/// call them there.
fn put_stubs(module: &mut Module, table: TableId, is_later: impl Fn(&str) -> bool) -> Result<Range<u32>> {
    let exports = module.exports.iter().filter(|export| is_later(&export.name));
    let mut exports: Vec<_> = exports.map(|export| (export.name.clone(), export.id(), export.item)).collect();
    exports.sort_by(|a, b| a.0.cmp(&b.0));
    ensure!(!exports.is_empty(), "expected exports of the later module but found none");
    let start = u32::try_from(module.tables.get(table).initial)?;
    let mut targets = Vec::new();
    for (slot, (name, export, item)) in (start..).zip(exports) {
        let ExportItem::Function(target) = item else { bail!("expected {name} to be a function") };
        let ty = module.funcs.get(target).ty();
        let (params, results) = module.types.params_results(ty);
        let (params, results) = (params.to_vec(), results.to_vec());
        let mut stub = FunctionBuilder::new(&mut module.types, &params, &results);
        stub.name(format!("{name} (stub)"));
        let params: Vec<_> = params.iter().map(|&param| module.locals.add(param)).collect();
        let mut body = stub.func_body();
        for &param in &params {
            body.local_get(param);
        }
        body.i32_const(slot as i32).call_indirect(ty, table);
        module.exports.get_mut(export).item = stub.finish(params, &mut module.funcs).into();
        targets.push(target);
    }
    let end = start + u32::try_from(targets.len())?;
    let offset = ConstExpr::Value(Value::I32(start as i32));
    let element =
        module.elements.add(ElementKind::Active { table, offset }, ElementItems::Functions(targets));
    let table = module.tables.get_mut(table);
    table.initial = end.into();
    table.maximum = table.maximum.map(|maximum| maximum.max(end.into()));
    table.elem_segments.insert(element);
    Ok(start..end)
}

/// What a set of exports reaches: functions and data.
struct Reached {
    functions: HashSet<FunctionId>,
    data: HashSet<usize>,
}

impl Reached {
    fn from_exports(
        module: &Module,
        table: TableId,
        links: &Links,
        functions: &[FunctionId],
        stubs: &Range<u32>,
    ) -> Result<Self> {
        let slots = slots(module, table)?;
        let indices: HashMap<FunctionId, u32> = functions.iter().copied().zip(0..).collect();
        let mut reached = Self { functions: HashSet::new(), data: HashSet::new() };
        let mut to_see: Vec<FunctionId> = Vec::new();
        let mut named: Vec<Named> = links.loose.clone();
        to_see.extend(module.start);
        to_see.extend(module.exports.iter().filter_map(|export| match export.item {
            ExportItem::Function(function) => Some(function),
            _ => None,
        }));
        for global in module.globals.iter() {
            if let GlobalKind::Local(ConstExpr::RefFunc(function)) = global.kind {
                to_see.push(function);
            }
        }
        // A table entry without a reference is unknown to the linker's relocations, such as those of the bindings.
        let mut held: HashSet<u32> = HashSet::new();
        let all = links.functions.values().chain(links.data.iter().map(|data| &data.names)).flatten();
        held.extend(all.filter_map(|named| match named {
            Named::Slot(slot) => Some(*slot),
            Named::Data(_) => None,
        }));
        let unknown = slots.iter().filter(|(slot, _)| !held.contains(slot) && !stubs.contains(slot));
        to_see.extend(unknown.map(|(_, function)| *function));

        loop {
            if let Some(function) = to_see.pop() {
                if !reached.functions.insert(function) {
                    continue;
                }
                if let FunctionKind::Local(local) = &module.funcs.get(function).kind {
                    dfs_in_order(&mut Calls(&mut to_see), local, local.entry_block());
                }
                named.extend(
                    indices.get(&function).and_then(|index| links.functions.get(index)).into_iter().flatten(),
                );
            } else if let Some(next) = named.pop() {
                match next {
                    Named::Slot(slot) => to_see.extend(slots.get(&slot)),
                    Named::Data(data) if reached.data.insert(data) => named.extend(&links.data[data].names),
                    Named::Data(_) => {}
                }
            } else {
                return Ok(reached);
            }
        }
    }
}

/// What a function calls.
struct Calls<'a>(&'a mut Vec<FunctionId>);

impl<'instr> Visitor<'instr> for Calls<'_> {
    fn visit_function_id(&mut self, function: &FunctionId) {
        self.0.push(*function);
    }
}

/// The functions of a table, by index.
fn slots(module: &Module, table: TableId) -> Result<BTreeMap<u32, FunctionId>> {
    let mut slots = BTreeMap::new();
    for element in module.elements.iter() {
        let start = match &element.kind {
            ElementKind::Active { table: of, .. } if *of != table => continue,
            ElementKind::Active { offset, .. } => constant(offset)?,
            ElementKind::Declared => continue,
            _ => bail!("expected functions at constant places of their table"),
        };
        let ElementItems::Functions(functions) = &element.items else {
            bail!("expected a table of functions without empty places")
        };
        slots.extend((start..).zip(functions.iter().copied()));
    }
    Ok(slots)
}

/// Exports everything that the later module may need of the first one, and returns the exports by name.
fn export_shared(module: &mut Module, reached: &Reached) -> BTreeMap<String, ExportId> {
    let mut items: Vec<ExportItem> = Vec::new();
    let functions = module.funcs.iter().filter(|function| {
        matches!(function.kind, FunctionKind::Import(_)) || reached.functions.contains(&function.id())
    });
    items.extend(functions.map(|function| ExportItem::Function(function.id())));
    items.extend(module.tables.iter().map(|table| ExportItem::Table(table.id())));
    items.extend(module.memories.iter().map(|memory| ExportItem::Memory(memory.id())));
    items.extend(module.globals.iter().map(|global| ExportItem::Global(global.id())));
    let named = items.into_iter().enumerate().map(|(number, item)| {
        let name = format!("{FIRST} {number}");
        let export = module.exports.add(&name, item);
        (name, export)
    });
    named.collect()
}

/// Turns a copy of the whole into the later module, which imports what was exported for it.
fn keep_later(module: &mut Module, shared: &BTreeMap<String, ExportId>, data: &[Range<u32>]) -> Result<()> {
    module.start = None;
    for id in module.imports.iter().map(|import| import.id()).collect::<Vec<_>>() {
        module.imports.delete(id);
    }
    let exports: Vec<_> =
        module.exports.iter().map(|each| (each.id(), each.name.clone(), each.item)).collect();
    let mut imported = HashSet::new();
    for (id, name, item) in exports {
        module.exports.delete(id);
        if !shared.contains_key(&name) {
            continue;
        }
        match item {
            ExportItem::Function(id) => {
                let import = module.imports.add(FIRST, &name, id);
                let function = module.funcs.get_mut(id);
                function.kind = FunctionKind::Import(ImportedFunction { import, ty: function.ty() });
                imported.insert(id);
            }
            ExportItem::Table(id) => {
                let import = module.imports.add(FIRST, &name, id);
                module.tables.get_mut(id).import = Some(import);
            }
            ExportItem::Memory(id) => {
                let import = module.imports.add(FIRST, &name, id);
                module.memories.get_mut(id).import = Some(import);
            }
            ExportItem::Global(id) => {
                let import = module.imports.add(FIRST, &name, id);
                module.globals.get_mut(id).kind = GlobalKind::Import(import);
            }
            ExportItem::Tag(_) => bail!("{name}: expected no tags"),
        }
    }
    let table = function_table(module)?;
    keep_slots(module, table, |function| !imported.contains(&function))?;
    // The first module fills the other tables.
    for element in module.elements.iter().map(|element| element.id()).collect::<Vec<_>>() {
        if !matches!(module.elements.get(element).kind, ElementKind::Active { table: of, .. } if of == table)
        {
            module.elements.delete(element);
        }
    }
    for other in module.tables.iter_mut().filter(|other| other.id() != table) {
        other.elem_segments.clear();
    }
    keep_data(module, |segment| within(segment, data))?;
    gc::run(module);
    Ok(())
}

/// Empties all other entries of a table.
fn keep_slots(module: &mut Module, table: TableId, keep: impl Fn(FunctionId) -> bool) -> Result<()> {
    let slots = slots(module, table)?;
    for element in module.tables.get_mut(table).elem_segments.drain().collect::<Vec<_>>() {
        module.elements.delete(element);
    }
    let mut runs: Vec<(u32, Vec<FunctionId>)> = Vec::new();
    for (slot, function) in slots {
        match runs.last_mut() {
            _ if !keep(function) => {}
            Some((start, run)) if *start + run.len() as u32 == slot => run.push(function),
            _ => runs.push((slot, vec![function])),
        }
    }
    for (start, run) in runs {
        let offset = ConstExpr::Value(Value::I32(start as i32));
        let kind = ElementKind::Active { table, offset };
        let element = module.elements.add(kind, ElementItems::Functions(run));
        module.tables.get_mut(table).elem_segments.insert(element);
    }
    Ok(())
}

/// Reduces each data segment to the runs of addresses that `keep` returns.
fn keep_data(module: &mut Module, keep: impl Fn(Range<u32>) -> Vec<Range<u32>>) -> Result<()> {
    for id in module.data.iter().map(|data| data.id()).collect::<Vec<_>>() {
        let data = module.data.get(id);
        let DataKind::Active { memory, offset } = &data.kind else {
            bail!("expected data segments that have an address")
        };
        let (memory, start, value) = (*memory, constant(offset)?, data.value.clone());
        module.data.delete(id);
        module.memories.get_mut(memory).data_segments.remove(&id);
        for run in keep(start..start + u32::try_from(value.len())?) {
            let bytes = value[(run.start - start) as usize..(run.end - start) as usize].to_vec();
            let offset = ConstExpr::Value(Value::I32(run.start as i32));
            let id = module.data.add(DataKind::Active { memory, offset }, bytes);
            module.memories.get_mut(memory).data_segments.insert(id);
        }
    }
    Ok(())
}

fn constant(expression: &ConstExpr) -> Result<u32> {
    match expression {
        ConstExpr::Value(Value::I32(value)) => Ok(*value as u32),
        other => bail!("expected a constant but found {other:?}"),
    }
}

/// The parts of a segment inside the sorted `ranges`, exactly.
fn within(segment: Range<u32>, ranges: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for range in ranges {
        let (start, end) = (range.start.max(segment.start), range.end.min(segment.end));
        match runs.last_mut() {
            _ if start >= end => {}
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

/// The parts of a segment outside `ranges`. Close parts are joined with what is between them: the first module may
/// contain bytes that the later one writes again.
fn without(segment: Range<u32>, ranges: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut runs = Vec::new();
    let mut start = segment.start;
    for gap in within(segment.clone(), ranges).into_iter().filter(|gap| gap.end - gap.start > CLOSE) {
        runs.push(start..gap.start);
        start = gap.end;
    }
    runs.push(start..segment.end);
    runs.retain(|run| !run.is_empty());
    runs
}

#[cfg(test)]
mod tests {
    use super::{split, within, without};
    use crate::links::Links;
    use std::path::Path;
    use std::process::Command;
    use std::{env, fs};

    #[test]
    fn data_go_to_one_of_the_two() {
        let ranges = [4..8, 8..30, 40..44, 90..120];
        assert_eq!(within(0..100, &ranges), [4..30, 40..44, 90..100]);
        assert_eq!(within(200..300, &ranges), []);
        // Four bytes are less than the overhead of a segment.
        assert_eq!(without(0..100, &ranges), [0..4, 30..90]);
        assert_eq!(without(4..30, &ranges), []);
        assert_eq!(without(50..130, &ranges), [50..90, 120..130]);
    }

    /// A program with code used by both parts, by one through a call and through the table, and by each alone.
    const PROGRAM: &str = r#"
        use std::cell::Cell;
        thread_local!(static TOTAL: Cell<u32> = const { Cell::new(0) });
        trait Works { fn work(&self, value: u32) -> u32; }
        struct Adds;
        struct Writes(u32);
        impl Works for Adds { fn work(&self, value: u32) -> u32 { TOTAL.set(TOTAL.get() + value); TOTAL.get() } }
        impl Works for Writes {
            fn work(&self, value: u32) -> u32 {
                let text = format!("only who writes: {} {}", std::hint::black_box(value), self.0);
                text.len() as u32 + add(0)
            }
        }
        #[inline(never)]
        fn dispatch(works: &[Box<dyn Works>], value: u32) -> u32 { works.iter().map(|each| each.work(value)).sum() }
        #[unsafe(no_mangle)]
        pub extern "C" fn add(value: u32) -> u32 {
            assert!(value < 1000, "only who adds");
            dispatch(&[Box::new(Adds)], value)
        }
        #[unsafe(no_mangle)]
        pub extern "C" fn write(value: u32) -> u32 { dispatch(&[Box::new(Adds), Box::new(Writes(BUILD))], value) }
    "#;

    /// What a page observes of it.
    const PAGE: &str = r#"
        import { readFileSync } from "node:fs";
        const read = (name) => readFileSync(new URL(name, import.meta.url));
        const start = async (name) => (await WebAssembly.instantiate(read(name), {})).instance.exports;
        const kind = async (run) => { try { return await run() } catch (error) { return error.constructor.name } };
        const first = await start("first1.wasm");
        const found = [first.add(3), await kind(() => first.write(5))];
        found.push(await kind(() => WebAssembly.instantiate(read("later2.wasm"), { first })));
        await WebAssembly.instantiate(read("later1.wasm"), { first });
        found.push(first.write(5), first.add(1));
        const has = (name, text) => read(name).includes(text);
        found.push(has("first1.wasm", "only who adds"), has("first1.wasm", "only who writes"));
        found.push(has("later1.wasm", "only who adds"), has("later1.wasm", "only who writes"));
        console.log(JSON.stringify(found));
    "#;

    /// Compiles and splits the program. Returns false if this machine cannot.
    fn build(folder: &Path, number: u32) -> bool {
        let source = folder.join(format!("program{number}.rs"));
        fs::write(&source, format!("const BUILD: u32 = {number};{PROGRAM}")).unwrap();
        let linked = folder.join(format!("program{number}.wasm"));
        let mut rustc = Command::new("rustc");
        rustc.args([
            "--target",
            "wasm32-unknown-unknown",
            "--crate-type",
            "cdylib",
            "--edition",
            "2024",
            "-O",
        ]);
        rustc.args(["-Clink-arg=--emit-relocs", "-o"]).arg(&linked).arg(&source);
        if !rustc.status().is_ok_and(|status| status.success()) {
            return false;
        }
        let bytes = fs::read(linked).unwrap();
        let (module, functions) = crate::parse(&bytes).unwrap();
        let links = Links::read(&bytes).unwrap();
        let parts = split(module, &links, &functions, |export| export == "write").unwrap();
        fs::write(folder.join(format!("first{number}.wasm")), parts.first).unwrap();
        fs::write(folder.join(format!("later{number}.wasm")), parts.later).unwrap();
        true
    }

    #[test]
    fn two_parts_are_one_program() {
        let folder = env::temp_dir().join(format!("lowbit-split-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("page.mjs"), PAGE).unwrap();
        let is_built = build(&folder, 1) && build(&folder, 2);
        let page = Command::new("node").arg(folder.join("page.mjs")).output();
        fs::remove_dir_all(&folder).unwrap();
        let (true, Ok(page)) = (is_built, page) else {
            return println!("skipped: splitting a module: rustc for wasm32 or node is not there");
        };
        let found = String::from_utf8_lossy(&page.stdout);
        let complaints = String::from_utf8_lossy(&page.stderr);
        // 8 of adding, 20 characters of text, and 8 of adding nothing. Each text is in the part that needs it.
        assert_eq!(
            found.trim(),
            r#"[3,"RuntimeError","LinkError",36,9,true,false,false,true]"#,
            "{complaints}"
        );
    }

    #[test]
    fn a_module_without_the_linkers_lists_is_an_error() {
        let error = Links::read(b"\0asm\x01\0\0\0").unwrap_err();
        assert!(error.to_string().contains("--emit-relocs"), "{error}");
    }
}
