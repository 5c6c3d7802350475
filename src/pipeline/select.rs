//! Plans each module before any work starts.

use super::budget::{Allocation, Budget};
use crate::artifact::records::{DequantizationRecord, DequantizedModule};
use crate::calibrate::method::ModuleTarget;
use crate::error::{Context, Error, Result};
use crate::layout::{Fit, TargetLayout};
use crate::model::block::LinearInput;
use crate::model::names::{self, Linear};
use crate::model::{Checkpoint, ModelConfig};
pub use crate::quant::Method;
use crate::quant::{Activations, Bits, ColumnOrder, GptqOptions, Granularity, Scheme};
use crate::recipe::{MethodChoice, Recipe};
use crate::sort;

/// Options of quantizing.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeOptions {
    /// The method.
    pub method: Method,
    /// The scheme of the linear layers of attention and MLP.
    pub scheme: Scheme,
    /// Quantize the head too, with the same scheme. A tied head is untied.
    pub quantize_head: bool,
    /// Quantize the embedding to these bits, with one scale per row. A tied head shares it.
    pub quantize_embedding: Option<Bits>,
    /// The layout to write; `None`: the best one for the scheme.
    pub layout: Option<TargetLayout>,
    /// GGUF only: the file name; `None`: `model.gguf`.
    pub file: Option<String>,
    /// Fail if the layout cannot hold a module's scheme, instead of using the nearest one.
    pub strict: bool,
    /// Ternary only: weights below this share of the scale become 0; `None`: one half.
    pub sparsity_threshold: Option<f32>,
    /// Precision of activations declared in the output.
    pub activations: Activations,
    /// Options of [`Method::Gptq`].
    pub gptq: GptqOptions,
    /// Exceptions from `method` and `scheme` for some linear layers.
    pub recipe: Option<Recipe>,
    /// A target size, for which the precision of each module is chosen. It replaces a recipe, and
    /// needs a calibrated method.
    pub target: Option<Budget>,
    /// The allocation behind a recipe made for a target, for the record.
    pub allocation: Option<Allocation>,
    /// Limit of peak memory in bytes for calibrated methods. A run that needs more does not start.
    pub memory: Option<u64>,
    /// A calibrated method continues an earlier run from its scratch, and saves progress there after each block.
    /// The result is bit-identical.
    pub resume: bool,
}

impl QuantizeOptions {
    /// Default options with a method and a scheme.
    pub fn new(method: Method, scheme: Scheme) -> Self {
        Self {
            method,
            scheme,
            quantize_head: false,
            quantize_embedding: None,
            layout: None,
            file: None,
            strict: false,
            sparsity_threshold: None,
            activations: Activations::F32,
            gptq: GptqOptions::default(),
            recipe: None,
            target: None,
            allocation: None,
            memory: None,
            resume: false,
        }
    }

    /// BitNet ternary with one scale per matrix or row.
    pub fn ternary(granularity: Granularity) -> Self {
        let usual = Self::new(Method::Ternary, Scheme::ternary(granularity));
        Self { activations: Activations::Int8, ..usual }
    }

    /// The layout of the output.
    pub fn target_layout(&self) -> TargetLayout {
        if let Some(layout) = self.layout {
            return layout;
        }
        let tensor = Scheme::ternary(Granularity::Tensor);
        // BitNet's own layout has one scale per matrix.
        if self.choices().all(|choice| choice.is_ok_and(|choice| choice.scheme == tensor)) {
            TargetLayout::BitNet
        } else {
            TargetLayout::CompressedTensors
        }
    }

    /// The first method, of the options and then of the recipe, that needs calibration samples.
    pub fn calibrated_method(&self) -> Option<Method> {
        self.methods().find(|method| method.is_calibrated())
    }

    /// Whether the options or the recipe use a method.
    pub fn asks_for(&self, method: Method) -> bool {
        self.methods().any(|asked| asked == method)
    }

    fn methods(&self) -> impl Iterator<Item = Method> {
        self.choices().filter_map(Result::ok).map(|choice| choice.method)
    }

    fn choice(&self) -> MethodChoice {
        MethodChoice { method: self.method, scheme: self.scheme }
    }

    /// The choice of the options, then those of quantizing rules.
    fn choices(&self) -> impl Iterator<Item = Result<MethodChoice>> {
        let rules = self.recipe.iter().flat_map(|recipe| &recipe.rules);
        let of_rules = rules.filter_map(|rule| rule.choose(self.choice()).transpose());
        std::iter::once(Ok(self.choice())).chain(of_rules)
    }

    /// Refuses invalid combinations.
    ///
    /// # Errors
    /// `invalid_argument`.
    pub fn check(&self) -> Result<()> {
        let ternary = self.scheme.is_ternary();
        if ternary != (self.method == Method::Ternary) {
            return Err(Error::invalid_argument(format!(
                "method {} does not produce {} weights",
                self.method.name(),
                self.scheme
            )));
        }
        if ternary && (self.quantize_head || self.quantize_embedding.is_some()) {
            return Err(Error::invalid_argument(
                "the ternary layout holds only the linear layers of attention and MLP, not the head or the embedding",
            ));
        }
        if let Some(threshold) = self.sparsity_threshold {
            if !ternary {
                return Err(Error::invalid_argument("a sparsity threshold requires the method ternary"));
            }
            if !(threshold.is_finite() && threshold > 0.0) {
                return Err(Error::invalid_argument(format!(
                    "expected a positive sparsity threshold but found {threshold}"
                )));
            }
        }
        let damping = self.gptq.damping;
        if !(damping.is_finite() && (0.0..1.0).contains(&damping)) {
            return Err(Error::invalid_argument(format!(
                "expected a damping of at least 0 and below 1 but found {damping}"
            )));
        }
        if self.target.is_some() && self.calibrated_method().is_none() {
            return Err(Error::invalid_argument(
                "a target is met with sensitivities measured on calibration texts; expected the method gptq or awq",
            ));
        }
        if self.file.is_some() && self.layout != Some(TargetLayout::Gguf) {
            return Err(Error::invalid_argument("a file name requires the layout gguf"));
        }
        if let Some(layout) = self.layout {
            let refuse = |reason| Error::invalid_argument(format!("the {} layout: {reason}", layout.name()));
            if layout == TargetLayout::Gguf && self.target.is_some() {
                return Err(refuse(
                    "its types have 4 or 8 bits, so a target has nothing to choose".to_owned(),
                ));
            }
            layout.holds_kind(self.scheme).map_err(refuse)?;
            if self.quantize_head {
                layout.can_hold_module(names::HEAD).map_err(refuse)?;
            }
            if self.quantize_embedding.is_some() {
                layout.can_hold_module(names::EMBEDDING).map_err(refuse)?;
            }
            let reorders = self.asks_for(Method::Gptq) && self.gptq.act_order == ColumnOrder::GroupIndex;
            if reorders && matches!(self.scheme.granularity(), Granularity::Group(_)) {
                layout.can_hold_order().map_err(refuse)?;
            }
        }
        if let Some(recipe) = &self.recipe {
            recipe.check()?;
            for (index, rule) in recipe.rules.iter().enumerate() {
                rule.choose(self.choice()).context_with(|| recipe.name(index))?;
            }
        }
        if let Granularity::Group(0) = self.scheme.granularity() {
            return Err(Error::invalid_argument("expected a positive group size but found 0"));
        }
        Ok(())
    }
}

/// The plan of one module.
#[derive(Clone, Debug, PartialEq)]
pub struct ModulePlan {
    /// Module name in the output.
    pub module: String,
    /// Module name in the source, which differs for a tied embedding.
    pub source: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Its scheme; `None`: floating point.
    pub scheme: Option<Scheme>,
    /// Its method; `None`: floating point, or restored to a former grid.
    pub method: Option<Method>,
    /// The index of its rule in the recipe.
    pub rule: Option<usize>,
    /// The reason for a deviation from the options: the rule, the layout's limits, or both.
    pub reason: Option<String>,
}

impl ModulePlan {
    /// The module's description for a method.
    pub fn target(&self, scheme: Scheme) -> ModuleTarget<'_> {
        let Self { module, source, rows, cols, .. } = self;
        ModuleTarget { module, source, rows: *rows, cols: *cols, scheme }
    }
}

/// Plans every linear module, and head and embedding if requested.
///
/// # Errors
/// `invalid_argument` for options that contradict each other, a group size beyond every row, a rule of the recipe that
/// matches no module, or a quantized checkpoint;
/// `unsupported_format` if the layout cannot hold the recipe's mixture, or if `strict` forbids the nearest scheme.
pub fn plan_modules(checkpoint: &Checkpoint, options: &QuantizeOptions) -> Result<Vec<ModulePlan>> {
    options.check()?;
    refuse_quantized(checkpoint, options)?;
    let config = checkpoint.config();
    let mut asked = Vec::new();
    for layer in 0..config.num_hidden_layers {
        for linear in Linear::ALL {
            let module = linear.module(layer);
            let mut one = ModuleRequest::new(options, module.clone(), module, linear.shape(config))?;
            if checkpoint.layout().has_masters() && !checkpoint.module(&one.module)?.is_packed() {
                one.choice = None;
            }
            asked.push(one);
        }
    }
    let table = (config.vocab_size, config.hidden_size);
    if options.quantize_head {
        let source = head_source(checkpoint, config);
        let mut head = ModuleRequest::new(options, names::HEAD.to_owned(), source, table)?;
        // Calibration covers the blocks only.
        if let Some(choice) = head.choice.as_mut().filter(|choice| choice.method.is_calibrated()) {
            choice.method = Method::Rtn;
        }
        asked.push(head);
    }
    if let Some(recipe) = &options.recipe {
        check_recipe(recipe, options.target_layout(), &asked)?;
        check_shared_inputs(&asked, config.num_hidden_layers)?;
    }
    for choice in asked.iter().filter_map(|asked| asked.choice) {
        refuse_wide_groups(config, choice.scheme.granularity())?;
    }
    if let Some(bits) = options.quantize_embedding {
        let scheme = Scheme::symmetric(bits, Granularity::Channel);
        let choice = Some(MethodChoice { method: Method::Rtn, scheme });
        let (module, source) = (names::EMBEDDING.to_owned(), checkpoint.embedding_module().to_owned());
        let embedding = ModuleRequest { module, source, shape: table, rule: None, choice };
        // Before the head.
        asked.insert(asked.len() - usize::from(options.quantize_head), embedding);
    }
    asked.into_iter().map(|asked| plan_one(options, asked)).collect()
}

/// Refuses a quantized checkpoint, unless it has master weights and the requested codes are those of its forward pass.
fn refuse_quantized(checkpoint: &Checkpoint, options: &QuantizeOptions) -> Result<()> {
    let of_masters = options.scheme == Scheme::ternary(Granularity::Tensor)
        && options.recipe.is_none()
        && options.sparsity_threshold.is_none();
    let reason = match (checkpoint.is_quantized(), checkpoint.layout().has_masters()) {
        (true, true) if of_masters => return Ok(()),
        (false, _) => return Ok(()),
        (true, true) => {
            "the model rounds its weights to ternary in every forward pass; only the method ternary with one scale per \
             matrix keeps its results"
        }
        (true, false) => "the checkpoint is already quantized; dequantize it first",
    };
    Err(Error::invalid_argument(format!("{}: {reason}", checkpoint.name())))
}

/// The request for one module, before the layout's limits apply.
struct ModuleRequest {
    module: String,
    source: String,
    shape: (usize, usize),
    rule: Option<usize>,
    /// `None`: floating point.
    choice: Option<MethodChoice>,
}

impl ModuleRequest {
    fn new(options: &QuantizeOptions, module: String, source: String, shape: (usize, usize)) -> Result<Self> {
        let found = options.recipe.as_ref().and_then(|recipe| Some((recipe, recipe.rule_for(&module)?)));
        let (rule, choice) = match found {
            Some((recipe, rule)) => {
                let choice = recipe.rules[rule].choose(options.choice());
                (Some(rule), choice.context_with(|| recipe.name(rule))?)
            }
            None => (None, Some(options.choice())),
        };
        Ok(Self { module, source, shape, rule, choice })
    }
}

/// Refuses rules without effect, and mixtures that the layout cannot hold.
fn check_recipe(recipe: &Recipe, layout: TargetLayout, asked: &[ModuleRequest]) -> Result<()> {
    for (index, rule) in recipe.rules.iter().enumerate() {
        if asked.iter().any(|asked| asked.rule == Some(index)) {
            continue;
        }
        let reason = if asked.iter().any(|asked| rule.matches(&asked.module)) {
            "earlier rules match all of its modules; the first matching rule applies"
        } else {
            "it matches no quantized module; expected linear layers of the blocks, such as \
             `model.layers.0.self_attn.q_proj`, or `lm_head` if the head is quantized"
        };
        return Err(Error::invalid_argument(reason).context(recipe.name(index)));
    }
    let mut choices = asked.iter().filter_map(|asked| Some((asked, asked.choice?.scheme)));
    let Some((first, scheme)) = choices.next() else {
        return Err(Error::invalid_argument("the recipe keeps every module in floating point"));
    };
    if let (Err(reason), Some((other, mixed))) =
        (layout.can_hold_mixed(), choices.find(|(_, other)| *other != scheme))
    {
        return Err(Error::unsupported_format(format!(
            "the {} layout: {reason}, but the recipe makes `{}` {scheme} and `{}` {mixed}",
            layout.name(),
            first.module,
            other.module
        )));
    }
    for asked in asked {
        if let (Some(rule), Some(choice)) = (asked.rule, asked.choice) {
            layout.holds_kind(choice.scheme).map_err(|reason| {
                Error::invalid_argument(format!("the {} layout: {reason}", layout.name()))
                    .context(recipe.name(rule))
            })?;
        }
    }
    Ok(())
}

/// Refuses AWQ next to another method among layers that share an input, because AWQ scales that input for its
/// own rounding.
fn check_shared_inputs(asked: &[ModuleRequest], layers: usize) -> Result<()> {
    for (layer, input) in (0..layers).flat_map(|layer| LinearInput::ALL.map(|input| (layer, input))) {
        let methods = input.linears().iter().filter_map(|linear| {
            let module = linear.module(layer);
            let asked = asked.iter().find(|asked| asked.module == module)?;
            Some((module, asked.choice?.method))
        });
        let (awq, others): (Vec<_>, Vec<_>) = methods.partition(|(_, method)| *method == Method::Awq);
        if let (Some((module, _)), Some((other, method))) = (awq.first(), others.first()) {
            return Err(Error::invalid_argument(format!(
                "the recipe quantizes `{module}` with awq and `{other}` with {}, but both read the same input, which \
                 awq scales; give both one method, or keep one in floating point",
                method.name()
            )));
        }
    }
    Ok(())
}

/// Refuses a group wider than every row: it would be one scale per row under a misleading name.
fn refuse_wide_groups(config: &ModelConfig, granularity: Granularity) -> Result<()> {
    let widest = Linear::ALL.map(|linear| linear.shape(config).1).into_iter().max().unwrap_or(0);
    match granularity {
        Granularity::Group(size) if size > widest => Err(Error::invalid_argument(format!(
            "expected a group size of at most {widest}, the columns of the widest module, or one scale per channel, \
             but found {size}"
        ))),
        _ => Ok(()),
    }
}

/// The former modules and schemes of a dequantized checkpoint.
///
/// # Errors
/// `invalid_checkpoint` for an unknown scheme or a missing module.
pub(super) fn plan_restore(
    checkpoint: &Checkpoint,
    record: &DequantizationRecord,
) -> Result<Vec<ModulePlan>> {
    let plan = |described: &DequantizedModule| {
        let (rows, cols) = checkpoint.module(&described.name)?.shape();
        Ok(ModulePlan {
            module: described.name.clone(),
            source: described.name.clone(),
            rows,
            cols,
            scheme: Some(described.scheme.parse()?),
            method: None,
            rule: None,
            reason: None,
        })
    };
    record.modules.iter().map(plan).collect()
}

/// The tensors that are copied, possibly in another type: all except weights of quantized modules. When a head is
/// untied, the embedding keeps the shared table.
pub(super) fn copied_tensors<'a>(
    checkpoint: &'a Checkpoint,
    plans: &[ModulePlan],
    unties: bool,
) -> Vec<&'a str> {
    let quantized = plans.iter().filter(|plan| plan.scheme.is_some());
    let mut consumed: Vec<String> = quantized
        .filter(|plan| !(unties && plan.module == names::HEAD))
        .map(|plan| format!("{}.weight", plan.source))
        .collect();
    sort::sort(&mut consumed);
    let is_consumed = |name: &str| consumed.binary_search_by(|known| known.as_str().cmp(name)).is_ok();
    let table = format!("{}.weight", checkpoint.embedding_module());
    let head = format!("{}.weight", names::HEAD);
    let tied = checkpoint.config().tie_word_embeddings;
    let is_second_table = |name: &str| tied && name == head && name != table;
    checkpoint.store().names().filter(|name| !is_consumed(name) && !is_second_table(name)).collect()
}

fn head_source(checkpoint: &Checkpoint, config: &ModelConfig) -> String {
    if config.tie_word_embeddings { checkpoint.embedding_module() } else { names::HEAD }.to_owned()
}

fn plan_one(options: &QuantizeOptions, asked: ModuleRequest) -> Result<ModulePlan> {
    let ModuleRequest { module, source, shape: (rows, cols), rule, choice } = asked;
    let rule_name = options.recipe.as_ref().zip(rule).map(|(recipe, rule)| recipe.name(rule));
    let Some(MethodChoice { method, scheme: wanted }) = choice else {
        let keeper = rule_name.unwrap_or_else(|| "the model".to_owned());
        let reason = Some(format!("{keeper} keeps it"));
        return Ok(ModulePlan { module, source, rows, cols, scheme: None, method: None, rule, reason });
    };
    let Fit { scheme, reason } = options.target_layout().fit_module(&module, rows, cols, wanted);
    if let (true, Some(reason)) = (options.strict, &reason) {
        return Err(Error::unsupported_format(format!("module `{module}`: {reason}")));
    }
    let reason = match (rule_name, reason) {
        (Some(name), Some(reason)) => Some(format!("{name}: {reason}")),
        (name, reason) => name.or(reason),
    };
    let method = scheme.map(|_| method);
    Ok(ModulePlan { module, source, rows, cols, scheme, method, rule, reason })
}
