//! References of a module's functions and data: to functions by table index, to data by address. Direct
//! calls are not included, because the code shows them.
//!
//! In WebAssembly both are plain numbers, so only the linker knows them. With `--emit-relocs` it writes a relocation for every
//! such number, and a symbol table. Each relocation is compared with the number at its place, so relocations that do not
//! fit the module are an error.

use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::ops::Range;
use wasmparser::{
    BinaryReader, DataKind, DefinedDataSymbol, Linking, LinkingSectionReader, Operator, Parser, Payload,
    RelocSectionReader, RelocationEntry, RelocationType, SymbolInfo,
};

/// The target of a reference.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Named {
    /// A function, by table index.
    Slot(u32),
    /// An index into [`Links::data`].
    Data(usize),
}

/// Data of one symbol, or of several that share bytes.
#[derive(Debug)]
pub struct Data {
    /// Its addresses.
    pub addresses: Range<u32>,
    pub names: Vec<Named>,
}

/// All references.
#[derive(Debug, Default)]
pub struct Links {
    /// References of each function, by its index in the linked module.
    pub functions: HashMap<u32, Vec<Named>>,
    /// Data, by address.
    pub data: Vec<Data>,
    /// References from data without a symbol.
    pub loose: Vec<Named>,
}

/// A data segment: the address of its first byte, and its offset in the file.
struct Segment {
    address: u32,
    file: Range<usize>,
}

#[derive(Default)]
struct Sections<'a> {
    /// Offsets of the sections that have relocations.
    code: usize,
    data: usize,
    /// Bodies of the defined functions, in order.
    bodies: Vec<Range<usize>>,
    imported_functions: u32,
    segments: Vec<Segment>,
    symbols: Vec<SymbolInfo<'a>>,
    relocations_of_code: Vec<RelocationEntry>,
    relocations_of_data: Vec<RelocationEntry>,
}

impl Links {
    /// Reads the references of a linked module.
    ///
    /// # Errors
    /// A relocation section is missing or does not fit the module.
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

    /// The data that contains an address.
    fn at(&self, address: u32) -> Option<usize> {
        let index = self.data.partition_point(|data| data.addresses.end <= address);
        self.data.get(index).filter(|data| data.addresses.contains(&address)).map(|_| index)
    }

    /// The target of the relocation at `at`. `None` for calls, types and globals, which the code shows.
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
                // Symbols without bytes in the file refer to nothing: zeros, and linker symbols such as the end of data.
                let Some(address) = sections.address(&symbol) else { return Ok(None) };
                let expected = address.wrapping_add(entry.addend as u32);
                ensure!(held == expected, "{name} is at {expected} but {at} has {held}");
                Ok(Some(Named::Data(self.at(address).context("every symbol has data")?)))
            }
            // An undefined weak symbol has a null address.
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

    /// The address of a symbol's first byte.
    fn address(&self, symbol: &DefinedDataSymbol) -> Option<u32> {
        Some(self.segments.get(symbol.index as usize)?.address + symbol.offset)
    }

    /// The data of all symbols, by address. Symbols that share bytes are merged.
    fn data_of_symbols(&self) -> Result<Vec<Data>> {
        let mut ranges = Vec::new();
        for symbol in &self.symbols {
            if let SymbolInfo::Data { symbol: Some(symbol), .. } = symbol
                && let Some(start) = self.address(symbol)
            {
                // A symbol without a size has an address, which may belong to another symbol.
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
