//! What a module's functions and data name: functions by their places in the table, data by their addresses. Not here: direct
//! calls, which the code itself shows.
//!
//! To WebAssembly both are plain numbers, so only the linker knows them. Asked by `--emit-relocs`, it leaves a list of every place
//! that holds such a number, and a list of the symbols. Each place is compared with what it should hold, so a list that does not
//! fit its module is an error and never a wrong answer.

use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::ops::Range;
use wasmparser::{
    BinaryReader, DataKind, DefinedDataSymbol, Linking, LinkingSectionReader, Operator, Parser, Payload,
    RelocSectionReader, RelocationEntry, RelocationType, SymbolInfo,
};

/// Something that is named by a number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Named {
    /// A function, by its place in the table.
    Slot(u32),
    /// One of [`Links::data`].
    Data(usize),
}

/// Data that stay together: a symbol's, or those of several that share bytes.
#[derive(Debug)]
pub struct Data {
    /// Where they are in memory.
    pub addresses: Range<u32>,
    pub names: Vec<Named>,
}

/// What names what.
#[derive(Debug, Default)]
pub struct Links {
    /// What each function names, by its index in the module as it was linked.
    pub functions: HashMap<u32, Vec<Named>>,
    /// By address.
    pub data: Vec<Data>,
    /// What data name that belong to no symbol.
    pub loose: Vec<Named>,
}

/// A data segment: the address of its first byte, and where that is in the file.
struct Segment {
    address: u32,
    file: Range<usize>,
}

#[derive(Default)]
struct Sections<'a> {
    /// Where the contents of the sections begin that have relocations.
    code: usize,
    data: usize,
    /// Of the functions that are defined here, in their order.
    bodies: Vec<Range<usize>>,
    imported_functions: u32,
    segments: Vec<Segment>,
    symbols: Vec<SymbolInfo<'a>>,
    relocations_of_code: Vec<RelocationEntry>,
    relocations_of_data: Vec<RelocationEntry>,
}

impl Links {
    /// Reads them from a linked module.
    ///
    /// # Errors
    /// What the linker did not leave, or what does not fit the module.
    pub fn read(module: &[u8]) -> Result<Self> {
        let sections = Sections::read(module)?;
        ensure!(
            !sections.symbols.is_empty() && !sections.relocations_of_code.is_empty(),
            "expected a module that was linked with --emit-relocs"
        );
        let mut links = Self { data: sections.data_of_symbols()?, ..Self::default() };
        for entry in &sections.relocations_of_code {
            let at = sections.code + entry.offset as usize;
            let Some(named) = links.named(&sections, module, entry, at)? else { continue };
            let body = sections.bodies.partition_point(|body| body.end <= at);
            let inside = sections.bodies.get(body).is_some_and(|body| body.contains(&at));
            ensure!(inside, "a relocation of code is at {at}, where no function is");
            links.functions.entry(sections.imported_functions + body as u32).or_default().push(named);
        }
        for entry in &sections.relocations_of_data {
            let at = sections.data + entry.offset as usize;
            let Some(named) = links.named(&sections, module, entry, at)? else { continue };
            let segment = sections.segments.iter().find(|segment| segment.file.contains(&at));
            let segment =
                segment.with_context(|| format!("a relocation of data is at {at}, where none are"))?;
            let address = segment.address + (at - segment.file.start) as u32;
            match links.at(address) {
                Some(data) => links.data[data].names.push(named),
                None => links.loose.push(named),
            }
        }
        Ok(links)
    }

    /// Which data an address belongs to.
    fn at(&self, address: u32) -> Option<usize> {
        let index = self.data.partition_point(|data| data.addresses.end <= address);
        self.data.get(index).filter(|data| data.addresses.contains(&address)).map(|_| index)
    }

    /// What the place at `at` names. Nothing where it holds no such number: calls, types and globals are in the code itself.
    fn named(
        &self,
        sections: &Sections<'_>,
        module: &[u8],
        entry: &RelocationEntry,
        at: usize,
    ) -> Result<Option<Named>> {
        use RelocationType as Type;
        let mut reader = BinaryReader::new(&module[at..], at);
        let held = match entry.ty {
            Type::FunctionIndexLeb | Type::TypeIndexLeb | Type::GlobalIndexLeb | Type::TableNumberLeb => {
                return Ok(None);
            }
            Type::TableIndexSleb | Type::MemoryAddrSleb => reader.read_var_i32()? as u32,
            Type::MemoryAddrLeb => reader.read_var_u32()?,
            Type::TableIndexI32 | Type::MemoryAddrI32 => reader.read_u32()?,
            other => bail!("a relocation at {at} is of a kind that is not known here: {other:?}"),
        };
        let symbol = sections.symbols.get(entry.index as usize);
        match (entry.ty, symbol) {
            (Type::TableIndexSleb | Type::TableIndexI32, Some(SymbolInfo::Func { .. })) => {
                Ok(Some(Named::Slot(held)))
            }
            (_, Some(&SymbolInfo::Data { symbol: Some(symbol), name, .. })) => {
                // What has no bytes in the file names nothing: zeros, and the linker's own, such as the end of all data.
                let Some(address) = sections.address(&symbol) else { return Ok(None) };
                let expected = address.wrapping_add(entry.addend as u32);
                ensure!(held == expected, "{name} is at {expected} but {at} has {held}");
                Ok(Some(Named::Data(self.at(address).context("every symbol has data")?)))
            }
            // A weak symbol that nobody defines: its address is null.
            (_, Some(SymbolInfo::Data { symbol: None, .. })) if held == 0 => Ok(None),
            _ => bail!("a relocation at {at} names no function and no data"),
        }
    }
}

impl<'a> Sections<'a> {
    fn read(module: &'a [u8]) -> Result<Self> {
        let mut sections = Self::default();
        for payload in Parser::new(0).parse_all(module) {
            match payload? {
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        let is_function = matches!(
                            import?.ty,
                            wasmparser::TypeRef::Func(_) | wasmparser::TypeRef::FuncExact(_)
                        );
                        sections.imported_functions += u32::from(is_function);
                    }
                }
                Payload::CodeSectionStart { range, .. } => sections.code = range.start,
                Payload::CodeSectionEntry(body) => sections.bodies.push(body.range()),
                Payload::DataSection(data) => {
                    sections.data = data.range().start;
                    for segment in data {
                        let segment = segment?;
                        let address = match segment.kind {
                            DataKind::Active { offset_expr, .. } => {
                                let mut operators = offset_expr.get_operators_reader();
                                match operators.read()? {
                                    Operator::I32Const { value } => value as u32,
                                    _ => bail!("expected a data segment at a constant address"),
                                }
                            }
                            DataKind::Passive => bail!("expected data segments that have an address"),
                        };
                        let start = segment.data.as_ptr() as usize - module.as_ptr() as usize;
                        sections.segments.push(Segment { address, file: start..start + segment.data.len() });
                    }
                }
                Payload::CustomSection(custom) => {
                    let reader = BinaryReader::new(custom.data(), custom.data_offset());
                    match custom.name() {
                        "linking" => {
                            for subsection in LinkingSectionReader::new(reader)? {
                                if let Linking::SymbolTable(symbols) = subsection? {
                                    sections.symbols = symbols.into_iter().collect::<Result<_, _>>()?;
                                }
                            }
                        }
                        "reloc.CODE" => sections.relocations_of_code = relocations(reader)?,
                        "reloc.DATA" => sections.relocations_of_data = relocations(reader)?,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        Ok(sections)
    }

    /// Where a symbol's first byte is in memory.
    fn address(&self, symbol: &DefinedDataSymbol) -> Option<u32> {
        Some(self.segments.get(symbol.index as usize)?.address + symbol.offset)
    }

    /// The data of all symbols, by address. Symbols that share bytes are one.
    fn data_of_symbols(&self) -> Result<Vec<Data>> {
        let mut ranges = Vec::new();
        for symbol in &self.symbols {
            if let SymbolInfo::Data { symbol: Some(symbol), .. } = symbol
                && let Some(start) = self.address(symbol)
            {
                // What has no size has an address all the same, and that may be of something else.
                let end = start.checked_add(symbol.size.max(1)).context("data end in memory")?;
                ranges.push(start..end);
            }
        }
        ranges.sort_by_key(|range| (range.start, range.end));
        let mut data: Vec<Data> = Vec::new();
        for range in ranges {
            match data.last_mut() {
                Some(last) if range.start < last.addresses.end => {
                    last.addresses.end = last.addresses.end.max(range.end);
                }
                _ => data.push(Data { addresses: range, names: Vec::new() }),
            }
        }
        Ok(data)
    }
}

fn relocations(reader: BinaryReader<'_>) -> Result<Vec<RelocationEntry>> {
    Ok(RelocSectionReader::new(reader)?.entries().into_iter().collect::<Result<_, _>>()?)
}
