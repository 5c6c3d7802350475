/**
 * The options as JSON Schemas, for tools that language models call. Written by `cargo xtask generate` from what the crate
 * declares; changes belong there.
 */

export const OpenOptions = {
  "type": "object",
  "properties": {
    "gptqZeros": {
      "enum": [
        "v1",
        "v2"
      ],
      "description": "How a GPTQ checkpoint stores asymmetric zero points: v1 minus one, v2 unchanged. Default: from the files."
    }
  },
  "required": [],
  "additionalProperties": false
} as const;

export const QuantizeRequest = {
  "type": "object",
  "properties": {
    "method": {
      "enum": [
        "rtn",
        "gptq",
        "awq",
        "ternary"
      ],
      "description": "Quantization method; gptq and awq need calibration texts. Default: rtn.",
      "default": "rtn"
    },
    "bits": {
      "enum": [
        2,
        3,
        4,
        8
      ],
      "description": "Bits per weight. Default: 4."
    },
    "groupSize": {
      "type": "integer",
      "minimum": -1,
      "not": {
        "const": 0
      },
      "description": "Weights per scale; -1: a whole row. Default: 128, and -1 for 8 bits."
    },
    "symmetric": {
      "type": "boolean",
      "description": "Symmetric codes, without zero points. Default: true."
    },
    "recipe": {
      "type": "object",
      "properties": {
        "rules": {
          "type": "array",
          "minItems": 1,
          "items": {
            "type": "object",
            "properties": {
              "modules": {
                "description": "Patterns of module names",
                "anyOf": [
                  {
                    "type": "string"
                  },
                  {
                    "type": "array",
                    "items": {
                      "type": "string"
                    },
                    "minItems": 1
                  }
                ]
              },
              "keep": {
                "type": "boolean",
                "description": "Keep the modules in floating point"
              },
              "bits": {
                "enum": [
                  2,
                  3,
                  4,
                  8
                ],
                "description": "Bits of a weight"
              },
              "group_size": {
                "type": "integer",
                "minimum": -1,
                "description": "Weights that share a scale; -1: a whole row"
              },
              "symmetric": {
                "type": "boolean",
                "description": "Whether groups have no zero point of their own"
              },
              "method": {
                "enum": [
                  "rtn",
                  "gptq",
                  "awq",
                  "ternary"
                ],
                "description": "How codes are found"
              }
            },
            "required": [
              "modules"
            ],
            "additionalProperties": false
          }
        }
      },
      "required": [
        "rules"
      ],
      "additionalProperties": false,
      "description": "Rules that change bits, group size or method of some modules, or keep them in floating point."
    },
    "targetBytes": {
      "type": "integer",
      "minimum": 1,
      "description": "Choose bits for each module so that all output tensors take at most so many bytes, by sensitivity on the calibration texts."
    },
    "targetBpw": {
      "type": "number",
      "exclusiveMinimum": 0.0,
      "description": "The same for mean bits per weight of the quantized modules, including scales and zero points."
    },
    "quantizeHead": {
      "type": "boolean",
      "description": "Quantize the head too. Default: false.",
      "default": false
    },
    "quantizeEmbedding": {
      "enum": [
        2,
        3,
        4,
        8
      ],
      "description": "Quantize the embedding too, to this many bits."
    },
    "ternaryScale": {
      "enum": [
        "tensor",
        "channel"
      ],
      "description": "Weights per ternary scale. Default: tensor."
    },
    "sparsityThreshold": {
      "type": "number",
      "exclusiveMinimum": 0.0,
      "description": "Ternary threshold: weights below this share of the scale become 0. Default: 0.5, rounding to nearest."
    },
    "activations": {
      "enum": [
        "f32",
        "int8"
      ],
      "description": "Precision of activations declared in the output."
    },
    "format": {
      "enum": [
        "compressed-tensors",
        "gptq",
        "gptq-v2",
        "awq",
        "bitnet",
        "gguf"
      ],
      "description": "The layout to write. Default: compressed-tensors; bitnet for ternary weights with one scale a tensor."
    },
    "file": {
      "type": "string",
      "description": "Name of a GGUF file. Default: model.gguf."
    },
    "strict": {
      "type": "boolean",
      "description": "Fail if the layout cannot hold a module's scheme, instead of using the nearest one. Default: false.",
      "default": false
    },
    "fromMetadata": {
      "type": "boolean",
      "description": "Round a dequantized checkpoint to its former grid; unchanged weights get their former codes. Default: false.",
      "default": false
    },
    "gptq": {
      "type": "object",
      "properties": {
        "damping": {
          "type": "number",
          "minimum": 0.0,
          "exclusiveMaximum": 1.0,
          "description": "gptq: damping, as a share of the Hessian's mean diagonal. Default: 0.05.",
          "default": 0.05
        },
        "actOrder": {
          "enum": [
            "none",
            "group-aware",
            "static",
            "group-index"
          ],
          "description": "gptq: column order of rounding. Default: group-aware.",
          "default": "group-aware"
        },
        "scales": {
          "enum": [
            "range",
            "least-error"
          ],
          "description": "gptq: rule for a group's scale. Default: least-error.",
          "default": "least-error"
        },
        "refinementPasses": {
          "type": "integer",
          "minimum": 0,
          "description": "gptq: refinement passes over codes and scales after rounding; 0: none; ignored with act-order group-index. Default: 2.",
          "default": 2
        },
        "referenceInputs": {
          "enum": [
            "original",
            "quantized"
          ],
          "description": "gptq: the inputs that define a layer's target output. Default: original.",
          "default": "original"
        }
      },
      "required": [],
      "additionalProperties": false,
      "description": "Options of gptq."
    },
    "calibration": {
      "type": "object",
      "properties": {
        "texts": {
          "type": "array",
          "items": {
            "type": "string"
          },
          "minItems": 1,
          "description": "Calibration texts."
        },
        "tokens": {
          "type": "array",
          "items": {
            "type": "integer",
            "minimum": 0
          },
          "description": "Token ids, appended to those of the texts."
        },
        "sequenceLength": {
          "type": "integer",
          "minimum": 2,
          "description": "Tokens in a sample, including the BOS token. Default: the model's context, at most 2048."
        },
        "seed": {
          "type": "integer",
          "minimum": 0,
          "description": "Seed to draw samples from the whole texts instead of their start."
        },
        "samples": {
          "type": "integer",
          "minimum": 1,
          "description": "Calibration samples. Default: 128.",
          "default": 128
        }
      },
      "required": [],
      "additionalProperties": false,
      "description": "Calibration texts of gptq and awq, preferably like those the model will read."
    },
    "memory": {
      "type": "integer",
      "minimum": 0,
      "description": "Calibrated methods: refuse to start if more bytes of memory are needed; then runs on the CPU unless a device is given."
    },
    "resume": {
      "type": "string",
      "description": "Calibrated methods: keep finished blocks here and continue after an interruption; emptied at the end."
    },
    "device": {
      "enum": [
        "auto",
        "cpu",
        "gpu"
      ],
      "description": "Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto.",
      "default": "auto"
    },
    "gpu": {
      "type": "string",
      "description": "Run on the GPU adapter with this in its name, as the list of devices has it."
    }
  },
  "required": [],
  "additionalProperties": false
} as const;

export const DequantizeRequest = {
  "type": "object",
  "properties": {
    "dtype": {
      "enum": [
        "f16",
        "f32"
      ],
      "description": "Type of the weights. Default: f16; f32 where f16 would change the predictions because activations are rounded."
    },
    "texts": {
      "anyOf": [
        {
          "type": "string"
        },
        {
          "type": "array",
          "items": {
            "type": "string"
          },
          "minItems": 1
        }
      ],
      "description": "Compare predictions on this text."
    },
    "context": {
      "type": "integer",
      "minimum": 2,
      "description": "Tokens in a window. Default: the model's context, at most 2048."
    },
    "stride": {
      "type": "integer",
      "minimum": 1,
      "description": "Tokens from the start of one window to the next. Default: no overlap."
    },
    "minRetention": {
      "type": "number",
      "minimum": 0.0,
      "maximum": 1.0,
      "description": "Minimal share of the original's predictions that the dequantized model must keep. Default: 0.995; 0.99 for training."
    }
  },
  "required": [],
  "additionalProperties": false
} as const;

export const ConvertRequest = {
  "type": "object",
  "properties": {
    "format": {
      "enum": [
        "compressed-tensors",
        "gptq",
        "gptq-v2",
        "awq",
        "bitnet",
        "gguf"
      ],
      "description": "The layout to write."
    },
    "strict": {
      "type": "boolean",
      "description": "Fail if anything would be lost. Default: false.",
      "default": false
    },
    "ggufType": {
      "enum": [
        "f32",
        "f16",
        "bf16",
        "q8_0",
        "q4_0",
        "q4_1",
        "q4_k",
        "tq2_0"
      ],
      "description": "For gguf: the type of the blocks' floating-point matrices. Default: f16."
    },
    "file": {
      "type": "string",
      "description": "For gguf: the file name. Default: model.gguf."
    }
  },
  "required": [
    "format"
  ],
  "additionalProperties": false
} as const;

export const LoadRequest = {
  "type": "object",
  "properties": {
    "activations": {
      "enum": [
        "f32",
        "int8"
      ],
      "description": "Precision of the linear layers' input activations. Default: the checkpoint's, usually f32."
    },
    "device": {
      "enum": [
        "auto",
        "cpu",
        "gpu"
      ],
      "description": "Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto.",
      "default": "auto"
    },
    "gpu": {
      "type": "string",
      "description": "Run on the GPU adapter with this in its name, as the list of devices has it."
    }
  },
  "required": [],
  "additionalProperties": false
} as const;

export const GenerateOptions = {
  "type": "object",
  "properties": {
    "maxTokens": {
      "type": "integer",
      "minimum": 1,
      "description": "At most this many new tokens. Default: 100.",
      "default": 100
    },
    "temperature": {
      "type": "number",
      "minimum": 0.0,
      "description": "0 takes the likeliest token each time; above, logits are divided by it. Default: 0.0.",
      "default": 0.0
    },
    "topK": {
      "type": "integer",
      "minimum": 0,
      "description": "Choose among so many of the likeliest tokens; 0: all. Default: 0.",
      "default": 0
    },
    "topP": {
      "type": "number",
      "exclusiveMinimum": 0.0,
      "maximum": 1.0,
      "description": "Choose among the likeliest tokens that together reach this probability; 1: all. Default: 1.0.",
      "default": 1.0
    },
    "minP": {
      "type": "number",
      "minimum": 0.0,
      "maximum": 1.0,
      "description": "Leave out tokens below this share of the likeliest one's probability. Default: 0.0.",
      "default": 0.0
    },
    "repetitionPenalty": {
      "type": "number",
      "exclusiveMinimum": 0.0,
      "description": "Above 1: discourage tokens that the prompt or the output already has. Default: 1.0.",
      "default": 1.0
    },
    "seed": {
      "type": "integer",
      "minimum": 0,
      "description": "Where the random numbers start: the same seed gives the same text. Default: 0.",
      "default": 0
    },
    "stop": {
      "type": "array",
      "items": {
        "type": "string"
      },
      "minItems": 1,
      "description": "Stop before any of these texts."
    },
    "ignoreEos": {
      "type": "boolean",
      "description": "Go on after an end-of-sequence token. Default: false.",
      "default": false
    },
    "continuePrompt": {
      "type": "boolean",
      "description": "Let the text begin as it follows the prompt, with the space that stands between them, and not as other tools report it. Default: false.",
      "default": false
    }
  },
  "required": [],
  "additionalProperties": false
} as const;

export const PerplexityRequest = {
  "type": "object",
  "properties": {
    "texts": {
      "anyOf": [
        {
          "type": "string"
        },
        {
          "type": "array",
          "items": {
            "type": "string"
          },
          "minItems": 1
        }
      ],
      "description": "The text to predict."
    },
    "name": {
      "type": "string",
      "description": "Name of the text in results. Default: text."
    },
    "context": {
      "type": "integer",
      "minimum": 2,
      "description": "Tokens in a window. Default: the model's context, at most 2048."
    },
    "stride": {
      "type": "integer",
      "minimum": 1,
      "description": "Tokens from the start of one window to the next. Default: no overlap."
    }
  },
  "required": [
    "texts"
  ],
  "additionalProperties": false
} as const;

export const ValidateRequest = {
  "type": "object",
  "properties": {
    "texts": {
      "anyOf": [
        {
          "type": "string"
        },
        {
          "type": "array",
          "items": {
            "type": "string"
          },
          "minItems": 1
        }
      ],
      "description": "The text to predict."
    },
    "name": {
      "type": "string",
      "description": "Name of the text in results. Default: text."
    },
    "context": {
      "type": "integer",
      "minimum": 2,
      "description": "Tokens in a window. Default: the model's context, at most 2048."
    },
    "stride": {
      "type": "integer",
      "minimum": 1,
      "description": "Tokens from the start of one window to the next. Default: no overlap."
    },
    "prompts": {
      "type": "array",
      "items": {
        "type": "string"
      },
      "minItems": 1,
      "description": "Prompts that both models continue. Default: passages of the text."
    },
    "maxTokens": {
      "type": "integer",
      "minimum": 1,
      "description": "New tokens for each prompt. Default: 64.",
      "default": 64
    },
    "benchmark": {
      "type": "string",
      "description": "Multiple-choice questions as JSON lines."
    },
    "speedRounds": {
      "type": "integer",
      "minimum": 0,
      "description": "Rounds of the speed measurement; 0 turns it off. Default: 7.",
      "default": 7
    },
    "limits": {
      "type": "object",
      "properties": {
        "maxPerplexityIncrease": {
          "type": "number",
          "minimum": -1.0,
          "description": "Perplexity may increase by less than this fraction. Default: 0.02.",
          "default": 0.02
        },
        "maxBenchmarkDropPoints": {
          "type": "number",
          "minimum": -100.0,
          "description": "Benchmark accuracy may drop by less than this many percentage points. Default: 2.0.",
          "default": 2.0
        },
        "maxNewFailures": {
          "type": "integer",
          "minimum": 0,
          "description": "Allowed number of generation failures that the original does not show. Default: 0.",
          "default": 0
        },
        "minMemoryRatio": {
          "type": "number",
          "minimum": 0.0,
          "description": "Required ratio of f16 to packed bytes of the quantized layers. Default: by scheme, 3.4 for INT4."
        },
        "minSpeedRatio": {
          "type": "number",
          "minimum": 0.0,
          "description": "Required decoding speed, as a multiple of the original's. Default: 1.5.",
          "default": 1.5
        }
      },
      "required": [],
      "additionalProperties": false,
      "description": "Limits of the verdict."
    },
    "activations": {
      "enum": [
        "f32",
        "int8"
      ],
      "description": "Precision of the quantized model's activations. Default: the checkpoint's, usually f32."
    },
    "memory": {
      "type": "integer",
      "minimum": 0,
      "description": "Available memory in bytes; two models that need more run layer by layer. Default: free memory, if known."
    },
    "layerStreamed": {
      "type": "boolean",
      "description": "Always hold one block at a time instead of two models. Default: false.",
      "default": false
    },
    "sideBySide": {
      "type": "boolean",
      "description": "Always hold both models. Default: false.",
      "default": false
    },
    "device": {
      "enum": [
        "auto",
        "cpu",
        "gpu"
      ],
      "description": "Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto.",
      "default": "auto"
    },
    "gpu": {
      "type": "string",
      "description": "Run on the GPU adapter with this in its name, as the list of devices has it."
    }
  },
  "required": [
    "texts"
  ],
  "additionalProperties": false
} as const;

export const AutoRequest = {
  "type": "object",
  "properties": {
    "texts": {
      "anyOf": [
        {
          "type": "string"
        },
        {
          "type": "array",
          "items": {
            "type": "string"
          },
          "minItems": 1
        }
      ],
      "description": "The text to predict."
    },
    "name": {
      "type": "string",
      "description": "Name of the text in results. Default: text."
    },
    "context": {
      "type": "integer",
      "minimum": 2,
      "description": "Tokens in a window. Default: the model's context, at most 2048."
    },
    "stride": {
      "type": "integer",
      "minimum": 1,
      "description": "Tokens from the start of one window to the next. Default: no overlap."
    },
    "calibration": {
      "type": "object",
      "properties": {
        "texts": {
          "type": "array",
          "items": {
            "type": "string"
          },
          "minItems": 1,
          "description": "Calibration texts."
        },
        "tokens": {
          "type": "array",
          "items": {
            "type": "integer",
            "minimum": 0
          },
          "description": "Token ids, appended to those of the texts."
        },
        "sequenceLength": {
          "type": "integer",
          "minimum": 2,
          "description": "Tokens in a sample, including the BOS token. Default: the model's context, at most 2048."
        },
        "seed": {
          "type": "integer",
          "minimum": 0,
          "description": "Seed to draw samples from the whole texts instead of their start."
        }
      },
      "required": [],
      "additionalProperties": false,
      "description": "Calibration texts."
    },
    "samples": {
      "type": "array",
      "items": {
        "type": "integer",
        "minimum": 0
      },
      "minItems": 1,
      "description": "Numbers of calibration samples to try, ascending. Default: 512, 2048.",
      "default": [
        512,
        2048
      ]
    },
    "method": {
      "enum": [
        "gptq",
        "awq"
      ],
      "description": "Quantization method. Default: gptq.",
      "default": "gptq"
    },
    "bits": {
      "enum": [
        2,
        3,
        4,
        8
      ],
      "description": "Initial precision, 4 or 8 bits. Default: recommended for the model's size."
    },
    "targetBpw": {
      "type": "number",
      "exclusiveMinimum": 0.0,
      "description": "Upper limit of mean bits per weight with scales, instead of an initial precision; bits are chosen for each layer."
    },
    "validate": {
      "type": "object",
      "properties": {
        "prompts": {
          "type": "array",
          "items": {
            "type": "string"
          },
          "minItems": 1,
          "description": "Prompts that both models continue. Default: passages of the text."
        },
        "maxTokens": {
          "type": "integer",
          "minimum": 1,
          "description": "New tokens for each prompt. Default: 64.",
          "default": 64
        },
        "benchmark": {
          "type": "string",
          "description": "Multiple-choice questions as JSON lines."
        },
        "speedRounds": {
          "type": "integer",
          "minimum": 0,
          "description": "Rounds of the speed measurement; 0 turns it off. Default: 7.",
          "default": 7
        },
        "limits": {
          "type": "object",
          "properties": {
            "maxPerplexityIncrease": {
              "type": "number",
              "minimum": -1.0,
              "description": "Perplexity may increase by less than this fraction. Default: 0.02.",
              "default": 0.02
            },
            "maxBenchmarkDropPoints": {
              "type": "number",
              "minimum": -100.0,
              "description": "Benchmark accuracy may drop by less than this many percentage points. Default: 2.0.",
              "default": 2.0
            },
            "maxNewFailures": {
              "type": "integer",
              "minimum": 0,
              "description": "Allowed number of generation failures that the original does not show. Default: 0.",
              "default": 0
            },
            "minMemoryRatio": {
              "type": "number",
              "minimum": 0.0,
              "description": "Required ratio of f16 to packed bytes of the quantized layers. Default: by scheme, 3.4 for INT4."
            },
            "minSpeedRatio": {
              "type": "number",
              "minimum": 0.0,
              "description": "Required decoding speed, as a multiple of the original's. Default: 1.5.",
              "default": 1.5
            }
          },
          "required": [],
          "additionalProperties": false,
          "description": "Limits of the verdict."
        },
        "activations": {
          "enum": [
            "f32",
            "int8"
          ],
          "description": "Precision of the quantized model's activations. Default: the checkpoint's, usually f32."
        }
      },
      "required": [],
      "additionalProperties": false,
      "description": "Measurements besides perplexity."
    },
    "memory": {
      "type": "integer",
      "minimum": 0,
      "description": "Available memory in bytes; two models that need more run layer by layer. Default: free memory, if known."
    },
    "layerStreamed": {
      "type": "boolean",
      "description": "Always hold one block at a time instead of two models. Default: false.",
      "default": false
    },
    "sideBySide": {
      "type": "boolean",
      "description": "Always hold both models. Default: false.",
      "default": false
    },
    "device": {
      "enum": [
        "auto",
        "cpu",
        "gpu"
      ],
      "description": "Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto.",
      "default": "auto"
    },
    "gpu": {
      "type": "string",
      "description": "Run on the GPU adapter with this in its name, as the list of devices has it."
    }
  },
  "required": [
    "texts"
  ],
  "additionalProperties": false
} as const;

export const CompareRequest = {
  "type": "object",
  "properties": {
    "prompts": {
      "type": "array",
      "items": {
        "type": "string"
      },
      "minItems": 1,
      "description": "Texts to continue."
    },
    "maxTokens": {
      "type": "integer",
      "minimum": 1,
      "description": "At most this many new tokens. Default: 64.",
      "default": 64
    },
    "activations": {
      "enum": [
        "f32",
        "int8"
      ],
      "description": "Precision of the linear layers' input activations. Default: the checkpoint's, usually f32."
    },
    "device": {
      "enum": [
        "auto",
        "cpu",
        "gpu"
      ],
      "description": "Where the model runs; `auto`: on a GPU where there is one that can, otherwise on the CPU. Default: auto.",
      "default": "auto"
    },
    "gpu": {
      "type": "string",
      "description": "Run on the GPU adapter with this in its name, as the list of devices has it."
    }
  },
  "required": [
    "prompts"
  ],
  "additionalProperties": false
} as const;

export const PlanRequest = {
  "type": "object",
  "properties": {
    "memory": {
      "type": "integer",
      "minimum": 0,
      "description": "Available memory in bytes."
    },
    "context": {
      "type": "integer",
      "minimum": 1,
      "description": "Tokens in the KV cache. Default: the model's context, at most 2048."
    }
  },
  "required": [],
  "additionalProperties": false
} as const;
