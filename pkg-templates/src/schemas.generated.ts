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
      "description": "How a GPTQ checkpoint stores asymmetric zero points: v1 minus one, v2 as they are. Default: what the files say."
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
      "description": "How codes are found; gptq and awq need calibration texts. Default: rtn.",
      "default": "rtn"
    },
    "bits": {
      "enum": [
        2,
        3,
        4,
        8
      ],
      "description": "Bits of a weight. Default: 4."
    },
    "groupSize": {
      "type": "integer",
      "minimum": -1,
      "not": {
        "const": 0
      },
      "description": "Weights that share a scale; -1: a whole row. Default: 128, and -1 for 8 bits."
    },
    "symmetric": {
      "type": "boolean",
      "description": "Whether groups have no zero point of their own. Default: true."
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
      "description": "Rules that give some modules other bits, group size or method, or keep them."
    },
    "targetBytes": {
      "type": "integer",
      "minimum": 1,
      "description": "Choose bits for each module so that all files' tensors take at most so many bytes; by what each loses on the calibration texts."
    },
    "targetBpw": {
      "type": "number",
      "exclusiveMinimum": 0.0,
      "description": "The same, for mean bits of a weight in the quantized modules, scales and zero points included."
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
      "description": "Quantize the embedding too, to so many bits."
    },
    "ternaryScale": {
      "enum": [
        "tensor",
        "channel"
      ],
      "description": "What a ternary scale is for. Default: tensor."
    },
    "sparsityThreshold": {
      "type": "number",
      "exclusiveMinimum": 0.0,
      "description": "Ternary weights below this share of the scale become 0. Default: those that round to 0."
    },
    "activations": {
      "enum": [
        "f32",
        "int8"
      ],
      "description": "Precision of the activations that the result is meant to run with."
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
      "description": "The layout to write. Default: compressed-tensors, and bitnet for ternary weights with one scale a tensor."
    },
    "file": {
      "type": "string",
      "description": "The name of a GGUF file. Default: model.gguf."
    },
    "strict": {
      "type": "boolean",
      "description": "Fail where the layout cannot hold a module as asked for, instead of taking the nearest scheme. Default: false.",
      "default": false
    },
    "fromMetadata": {
      "type": "boolean",
      "description": "Go back to the grid that a dequantized checkpoint was on: unchanged weights get the codes that they had. Default: false.",
      "default": false
    },
    "gptq": {
      "type": "object",
      "properties": {
        "damping": {
          "type": "number",
          "minimum": 0.0,
          "exclusiveMaximum": 1.0,
          "description": "gptq: share of the Hessian's mean diagonal that is added to its diagonal. Default: 0.05.",
          "default": 0.05
        },
        "actOrder": {
          "enum": [
            "none",
            "group-aware",
            "static",
            "group-index"
          ],
          "description": "gptq: the order in which columns are rounded. Default: group-aware.",
          "default": "group-aware"
        },
        "scales": {
          "enum": [
            "range",
            "least-error"
          ],
          "description": "gptq: where the scale of a group comes from. Default: least-error.",
          "default": "least-error"
        },
        "refinementPasses": {
          "type": "integer",
          "minimum": 0,
          "description": "gptq: how often codes and scales are gone over again for less output error; 0: gptq alone. Not with groups along the order of columns, which are scattered. Default: 2.",
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
      "description": "How gptq works."
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
          "description": "Texts to learn from."
        },
        "tokens": {
          "type": "array",
          "items": {
            "type": "integer",
            "minimum": 0
          },
          "description": "Token ids, after those of the texts."
        },
        "sequenceLength": {
          "type": "integer",
          "minimum": 2,
          "description": "Tokens of a sample, the one in front included. Default: what the model was made for, at most 2048."
        },
        "seed": {
          "type": "integer",
          "minimum": 0,
          "description": "Draw samples from everywhere in the texts, by this number, instead of from their start."
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
      "description": "What gptq and awq learn from, best of the kind that the model will read."
    },
    "memory": {
      "type": "integer",
      "minimum": 0,
      "description": "Methods that calibrate: do not start where more memory than this would be needed, in bytes. Runs on the CPU then, for which it is planned, unless a device is chosen."
    },
    "resume": {
      "type": "string",
      "description": "Methods that calibrate: keep what is done here, and go on from there after a run that was stopped. It is empty again when the work is done."
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
      "description": "Type of the weights. Default: f16; f32 where the quantized model rounds activations so that f16 would change its predictions."
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
      "description": "Tokens that the model sees at once. Default: what the model was made for, at most 2048."
    },
    "stride": {
      "type": "integer",
      "minimum": 1,
      "description": "Tokens from the start of one window to the next. Default: windows do not overlap."
    },
    "minRetention": {
      "type": "number",
      "minimum": 0.0,
      "maximum": 1.0,
      "description": "The share of predictions that the dequantized model shall keep of the original's. Default: 0.995; 0.99 for training."
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
      "description": "Fail where anything would be lost. Default: false.",
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
      "description": "For gguf: what floating-point matrices of the blocks become. Default: f16."
    },
    "file": {
      "type": "string",
      "description": "For gguf: the name of the file. Default: model.gguf."
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
      "description": "Precision of the activations that meet the linear layers. Default: what the checkpoint says, mostly f32."
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
      "description": "What results call the text. Default: text."
    },
    "context": {
      "type": "integer",
      "minimum": 2,
      "description": "Tokens that the model sees at once. Default: what the model was made for, at most 2048."
    },
    "stride": {
      "type": "integer",
      "minimum": 1,
      "description": "Tokens from the start of one window to the next. Default: windows do not overlap."
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
      "description": "What results call the text. Default: text."
    },
    "context": {
      "type": "integer",
      "minimum": 2,
      "description": "Tokens that the model sees at once. Default: what the model was made for, at most 2048."
    },
    "stride": {
      "type": "integer",
      "minimum": 1,
      "description": "Tokens from the start of one window to the next. Default: windows do not overlap."
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
      "description": "Rounds of the speed measurement; 0 leaves it out. Default: 7.",
      "default": 7
    },
    "limits": {
      "type": "object",
      "properties": {
        "maxPerplexityIncrease": {
          "type": "number",
          "minimum": -1.0,
          "description": "Perplexity must increase by less than this share. Default: 0.02.",
          "default": 0.02
        },
        "maxBenchmarkDropPoints": {
          "type": "number",
          "minimum": -100.0,
          "description": "Benchmark accuracy must drop by less than so many points. Default: 2.0.",
          "default": 2.0
        },
        "maxNewFailures": {
          "type": "integer",
          "minimum": 0,
          "description": "At most so many generation failures that the original does not show. Default: 0.",
          "default": 0
        },
        "minMemoryRatio": {
          "type": "number",
          "minimum": 0.0,
          "description": "Quantized layers must be so many times smaller than in f16. Default: by scheme, 3.4 for INT4."
        },
        "minSpeedRatio": {
          "type": "number",
          "minimum": 0.0,
          "description": "Decoding must be so many times faster. Default: 1.5.",
          "default": 1.5
        }
      },
      "required": [],
      "additionalProperties": false,
      "description": "By what the measurements are judged."
    },
    "activations": {
      "enum": [
        "f32",
        "int8"
      ],
      "description": "Precision of the quantized model's activations. Default: what the checkpoint says, mostly f32."
    },
    "memory": {
      "type": "integer",
      "minimum": 0,
      "description": "Memory that may be used, in bytes; two models that take more run layer by layer. Default: what is free, where that is known."
    },
    "layerStreamed": {
      "type": "boolean",
      "description": "Hold one block at a time instead of two models, however much memory there is. Default: false.",
      "default": false
    },
    "sideBySide": {
      "type": "boolean",
      "description": "Hold both models, however little memory there is. Default: false.",
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
      "description": "What results call the text. Default: text."
    },
    "context": {
      "type": "integer",
      "minimum": 2,
      "description": "Tokens that the model sees at once. Default: what the model was made for, at most 2048."
    },
    "stride": {
      "type": "integer",
      "minimum": 1,
      "description": "Tokens from the start of one window to the next. Default: windows do not overlap."
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
          "description": "Texts to learn from."
        },
        "tokens": {
          "type": "array",
          "items": {
            "type": "integer",
            "minimum": 0
          },
          "description": "Token ids, after those of the texts."
        },
        "sequenceLength": {
          "type": "integer",
          "minimum": 2,
          "description": "Tokens of a sample, the one in front included. Default: what the model was made for, at most 2048."
        },
        "seed": {
          "type": "integer",
          "minimum": 0,
          "description": "Draw samples from everywhere in the texts, by this number, instead of from their start."
        }
      },
      "required": [],
      "additionalProperties": false,
      "description": "What is learned from."
    },
    "samples": {
      "type": "array",
      "items": {
        "type": "integer",
        "minimum": 0
      },
      "minItems": 1,
      "description": "Numbers of calibration samples to try, growing. Default: 512, 2048.",
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
      "description": "How codes are found. Default: gptq.",
      "default": "gptq"
    },
    "bits": {
      "enum": [
        2,
        3,
        4,
        8
      ],
      "description": "Where to begin, 4 or 8 bits. Default: what a plan recommends for the size."
    },
    "targetBpw": {
      "type": "number",
      "exclusiveMinimum": 0.0,
      "description": "The most bits a weight that may be used, with scales, in place of bits to begin with: each layer gets what fits best."
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
          "description": "Rounds of the speed measurement; 0 leaves it out. Default: 7.",
          "default": 7
        },
        "limits": {
          "type": "object",
          "properties": {
            "maxPerplexityIncrease": {
              "type": "number",
              "minimum": -1.0,
              "description": "Perplexity must increase by less than this share. Default: 0.02.",
              "default": 0.02
            },
            "maxBenchmarkDropPoints": {
              "type": "number",
              "minimum": -100.0,
              "description": "Benchmark accuracy must drop by less than so many points. Default: 2.0.",
              "default": 2.0
            },
            "maxNewFailures": {
              "type": "integer",
              "minimum": 0,
              "description": "At most so many generation failures that the original does not show. Default: 0.",
              "default": 0
            },
            "minMemoryRatio": {
              "type": "number",
              "minimum": 0.0,
              "description": "Quantized layers must be so many times smaller than in f16. Default: by scheme, 3.4 for INT4."
            },
            "minSpeedRatio": {
              "type": "number",
              "minimum": 0.0,
              "description": "Decoding must be so many times faster. Default: 1.5.",
              "default": 1.5
            }
          },
          "required": [],
          "additionalProperties": false,
          "description": "By what the measurements are judged."
        },
        "activations": {
          "enum": [
            "f32",
            "int8"
          ],
          "description": "Precision of the quantized model's activations. Default: what the checkpoint says, mostly f32."
        }
      },
      "required": [],
      "additionalProperties": false,
      "description": "What is measured beside perplexity."
    },
    "memory": {
      "type": "integer",
      "minimum": 0,
      "description": "Memory that may be used, in bytes; two models that take more run layer by layer. Default: what is free, where that is known."
    },
    "layerStreamed": {
      "type": "boolean",
      "description": "Hold one block at a time instead of two models, however much memory there is. Default: false.",
      "default": false
    },
    "sideBySide": {
      "type": "boolean",
      "description": "Hold both models, however little memory there is. Default: false.",
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
      "description": "Precision of the activations that meet the linear layers. Default: what the checkpoint says, mostly f32."
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
      "description": "Memory that may be used, in bytes."
    },
    "context": {
      "type": "integer",
      "minimum": 1,
      "description": "Tokens that the KV cache has room for. Default: what the model was made for, at most 2048."
    }
  },
  "required": [],
  "additionalProperties": false
} as const;
