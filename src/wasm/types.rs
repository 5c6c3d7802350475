//! What the bindings' declarations call what passes through them: the package's own types, so that its TypeScript needs no
//! casts.

use wasm_bindgen::prelude::wasm_bindgen;

#[wasm_bindgen(typescript_custom_section)]
const IMPORTS: &str = r#"
import type { Codec, Control, Folder, OpenFile, Outputs, Scratch, Sink, TargetFolder } from "../platform.js";
import type * as options from "../options.generated.js";
import type * as types from "../types.js";
"#;
