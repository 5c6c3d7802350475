//! Imports of the package's own types into the bindings' TypeScript declarations, so that the package needs no casts.

use wasm_bindgen::prelude::wasm_bindgen;

#[wasm_bindgen(typescript_custom_section)]
const IMPORTS: &str = r#"
import type { Codec, Control, Folder, OpenFile, Outputs, Scratch, Sink, TargetFolder } from "../platform.js";
import type * as options from "../options.generated.js";
import type * as types from "../types.js";
"#;
