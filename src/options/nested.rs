//! Structs of options as options: flattened into the outer struct, or as a nested object.

/// Implements [`OptionValue`](crate::options::OptionValue) for a struct of options.
macro_rules! nested {
    ($Options:ident) => {
        impl $crate::options::OptionValue for $Options {
            fn kind() -> $crate::options::Kind {
                $crate::options::Kind::Object {
                    type_name: stringify!($Options),
                    about: <Self as $crate::options::Options>::ABOUT,
                    options: <Self as $crate::options::Options>::specs(),
                }
            }

            fn read(value: &serde_json::Value) -> Result<Self, String> {
                $crate::options::read(value).map_err(|error| error.to_string())
            }

            fn show(&self) -> Option<serde_json::Value> {
                None
            }

            fn describe(
                &self,
                declared: $crate::options::Declared,
                specs: &mut Vec<$crate::options::OptionSpec>,
            ) {
                if declared.form == $crate::options::Form::Group {
                    specs.extend(<Self as $crate::options::Options>::specs());
                } else {
                    let kind = <Self as $crate::options::OptionValue>::kind();
                    specs.push($crate::options::OptionSpec { declared, kind, default: None });
                }
            }

            fn names(declared: $crate::options::Declared, names: &mut Vec<&'static str>) {
                if declared.form == $crate::options::Form::Group {
                    <Self as $crate::options::Options>::names(names);
                } else {
                    names.push(declared.name);
                }
            }

            fn offer(
                &mut self,
                declared: $crate::options::Declared,
                name: &str,
                value: &serde_json::Value,
            ) -> $crate::error::Result<bool> {
                if declared.form == $crate::options::Form::Group {
                    return $crate::options::Options::take(self, name, value);
                }
                if name != declared.name {
                    return Ok(false);
                }
                *self = Self::read_named(declared, value)?;
                Ok(true)
            }

            fn read_named(
                declared: $crate::options::Declared,
                value: &serde_json::Value,
            ) -> $crate::error::Result<Self> {
                use $crate::error::Context;
                $crate::options::read(value).context_with(|| $crate::options::camel_case(declared.name))
            }

            fn accept(
                &self,
                declared: $crate::options::Declared,
                spelling: $crate::options::Spelling,
            ) -> $crate::error::Result<()> {
                use $crate::error::Context;
                let checked = $crate::options::Options::check_as(self, spelling);
                if declared.form == $crate::options::Form::Group {
                    return checked;
                }
                checked.context_with(|| spelling.of(declared.name))
            }
        }
    };
}
pub(crate) use nested;
