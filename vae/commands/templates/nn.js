"use strict";
// A trained network in the browser: the layers as torch names them, written by vae/evaluation/explorer.py. Images are (C, H, W), flat.

async function gunzip(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function unpack(array) {
  const buffer = await gunzip(array.gzip);
  if (array.type === "uint8") return new Uint8Array(buffer);
  if (array.type === "float32") return new Float32Array(buffer);
  return Float32Array.from(new Uint16Array(buffer), halfToFloat);
}

function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// Abramowitz and Stegun 7.1.26: off by 1.5e-7 at most
function erf(v) {
  const t = 1 / (1 + 0.3275911 * Math.abs(v));
  const tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(v) * (1 - tail * Math.exp(-v * v));
}
const sigmoid = (v) => 1 / (1 + Math.exp(-v));
const softplus = (v) => Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v)));
const ACTIVATIONS = {
  ReLU: (v) => Math.max(v, 0),
  LeakyReLU: (v, { negative_slope }) => (v > 0 ? v : negative_slope * v),
  ELU: (v, { alpha }) => (v > 0 ? v : alpha * Math.expm1(v)),
  GELU: (v) => 0.5 * v * (1 + erf(v / Math.SQRT2)),
  SiLU: (v) => v * sigmoid(v),
  Tanh: Math.tanh,
  Softplus: softplus,
  Sigmoid: sigmoid,
};

function pool(x, [channels, high, wide], reduce) {
  const h = high >> 1, w = wide >> 1, out = new Float32Array(channels * h * w);
  for (let c = 0, k = 0; c < channels; c++)
    for (let row = 0; row < h; row++)
      for (let column = 0; column < w; column++) {
        const at = (c * high + 2 * row) * wide + 2 * column;
        out[k++] = reduce([x[at], x[at + 1], x[at + wide], x[at + wide + 1]]);
      }
  return [out, [channels, h, w]];
}

// Each layer takes its arguments, values, their shape and its tensors, and returns values and their shape.
const LAYERS = {
  Linear(args, x, shape, { weight, bias }) {
    const out = new Float32Array(bias.length);
    for (let o = 0, k = 0; o < out.length; o++) {
      let sum = bias[o];
      for (let i = 0; i < x.length; i++) sum += weight[k++] * x[i];
      out[o] = sum;
    }
    return [out, [out.length]];
  },
  Flatten(args, x) {
    return [x, [x.length]];
  },
  Unflatten(args, x) {
    return [x, args.unflattened_size];
  },
  Conv2d(args, x, [channels, high, wide], { weight, bias }) {
    const [kernel, stride, padding] = [args.kernel_size[0], args.stride[0], args.padding[0]];
    const [h, w] = [high, wide].map((size) => Math.floor((size + 2 * padding - kernel) / stride) + 1);
    const out = new Float32Array(args.out_channels * h * w);
    for (let o = 0, k = 0; o < args.out_channels; o++) {
      out.fill(bias[o], o * h * w, (o + 1) * h * w);
      for (let i = 0; i < channels; i++)
        for (let dy = -padding; dy < kernel - padding; dy++)
          for (let dx = -padding; dx < kernel - padding; dx++) {
            const weighed = weight[k++];
            for (let row = 0; row < h; row++) {
              const y = row * stride + dy;
              if (y < 0 || y >= high) continue;
              for (let column = 0; column < w; column++) {
                const at = column * stride + dx;
                if (at >= 0 && at < wide) out[(o * h + row) * w + column] += weighed * x[(i * high + y) * wide + at];
              }
            }
          }
    }
    return [out, [args.out_channels, h, w]];
  },
  ConvTranspose2d(args, x, [channels, high, wide], { weight, bias }) {
    const [kernel, stride, padding] = [args.kernel_size[0], args.stride[0], args.padding[0]], more = args.output_padding;
    const [h, w] = [high, wide].map((size, i) => (size - 1) * stride - 2 * padding + kernel + more[i]);
    const out = new Float32Array(args.out_channels * h * w);
    bias.forEach((value, o) => out.fill(value, o * h * w, (o + 1) * h * w));
    for (let i = 0, k = 0; i < channels; i++)
      for (let o = 0; o < args.out_channels; o++)
        for (let dy = -padding; dy < kernel - padding; dy++)
          for (let dx = -padding; dx < kernel - padding; dx++) {
            const weighed = weight[k++];
            for (let row = 0; row < high; row++) {
              const y = row * stride + dy;
              if (y < 0 || y >= h) continue;
              for (let column = 0; column < wide; column++) {
                const at = column * stride + dx;
                if (at >= 0 && at < w) out[(o * h + y) * w + at] += weighed * x[(i * high + row) * wide + column];
              }
            }
          }
    return [out, [args.out_channels, h, w]];
  },
  BatchNorm2d(args, x, shape, { weight, bias, running_mean, running_var }) {
    const area = shape[1] * shape[2], scale = weight.map((w, c) => w / Math.sqrt(running_var[c] + args.eps));
    return [x.map((v, i) => (v - running_mean[Math.floor(i / area)]) * scale[Math.floor(i / area)] + bias[Math.floor(i / area)]), shape];
  },
  GroupNorm(args, x, shape, { weight, bias }) {
    const area = shape[1] * shape[2], size = (shape[0] / args.num_groups) * area, out = new Float32Array(x.length);
    for (let start = 0; start < x.length; start += size) {
      let mean = 0, variance = 0;
      for (let i = start; i < start + size; i++) mean += x[i] / size;
      for (let i = start; i < start + size; i++) variance += (x[i] - mean) ** 2 / size;
      const scale = 1 / Math.sqrt(variance + args.eps);
      for (let i = start; i < start + size; i++) {
        const channel = Math.floor(i / area);
        out[i] = (x[i] - mean) * scale * weight[channel] + bias[channel];
      }
    }
    return [out, shape];
  },
  MaxPool2d: (args, x, shape) => pool(x, shape, (four) => Math.max(...four)),
  AvgPool2d: (args, x, shape) => pool(x, shape, (four) => (four[0] + four[1] + four[2] + four[3]) / 4),
  Upsample(args, x, [channels, high, wide]) {
    const [h, w] = args.size, out = new Float32Array(channels * h * w);
    for (let c = 0, k = 0; c < channels; c++)
      for (let row = 0; row < h; row++)
        for (let column = 0; column < w; column++)
          out[k++] = x[(c * high + Math.floor((row * high) / h)) * wide + Math.floor((column * wide) / w)];
    return [out, [channels, h, w]];
  },
};

for (const [type, f] of Object.entries(ACTIVATIONS)) LAYERS[type] = (args, x, shape) => [x.map((v) => f(v, args)), shape];

async function loadNetwork(network) {
  const weights = await unpack(network.weights);
  const part = ([name, [start, length]]) => [name, weights.subarray(start, start + length)];
  const layers = network.steps.map((step) => [step, Object.fromEntries(Object.entries(step.tensors).map(part))]);
  return (x, shape) => layers.reduce(([v, s], [{ type, arguments: args }, tensors]) => LAYERS[type](args, v, s, tensors), [x, shape])[0];
}

// Box and Muller
const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

const LEVELS = 255;
const logisticMean = (loc, scale) => {
  let total = 0;
  for (let level = 0; level < LEVELS; level++) total += sigmoid((loc - (level + 0.5) / LEVELS) / scale);
  return total / LEVELS;
};

// The decoder's output -> p(x|z): the mean of a pixel, and a draw of it, from its one or two parameters.
const HEADS = {
  squared_error: {
    mean: (head, a) => linked(head, a),
    draw: (head, a, b) => linked(head, a) + (head.params_per_pixel > 1 ? Math.exp(0.5 * b) * normal() : 0),
  },
  gaussian: {
    mean: (head, a) => linked(head, a),
    draw: (head, a, b) => linked(head, a) + (head.sigma === null ? head.min_sigma + softplus(b) : head.sigma) * normal(),
  },
  bernoulli: { mean: (head, a) => sigmoid(a), draw: (head, a) => +(Math.random() < sigmoid(a)) },
  continuous_bernoulli: {
    mean: (head, a) => (Math.abs(a) < 0.05 ? 0.5 + a / 12 : -1 / Math.expm1(-a) - 1 / a),
    // the inverse of its distribution function, (exp(a x) - 1) / (exp(a) - 1)
    draw: (head, a) => {
      const u = Math.random();
      if (Math.abs(a) < 1e-3) return u;
      return a > 0 ? 1 + Math.log(u + (1 - u) * Math.exp(-a)) / a : Math.log1p(u * Math.expm1(a)) / a;
    },
  },
  discretized_logistic: {
    mean: (head, a, b) => logisticMean(linked(head, a), logisticScale(head, b)),
    draw: (head, a, b) => {
      const u = Math.random() || Number.MIN_VALUE;
      const x = linked(head, a) + logisticScale(head, b) * (Math.log(u) - Math.log1p(-u));
      return Math.min(1, Math.max(0, Math.round(x * LEVELS) / LEVELS));
    },
  },
};
HEADS.cross_entropy = HEADS.bernoulli;
const linked = (head, v) => (head.link === "sigmoid" ? sigmoid(v) : v);
const logisticScale = (head, v) => head.min_scale + softplus(v - Math.log(9.5));

async function loadModel(data) {
  const [encoder, decoder] = await Promise.all([loadNetwork(data.encoder), loadNetwork(data.decoder)]);
  const head = data.head, pixels = data.image_shape.reduce((a, b) => a * b), D = data.latent_dim;
  return {
    // q(z|x): mean and standard deviation of each latent
    encode(x) {
      const out = encoder(x, data.image_shape);
      return { mean: out.slice(0, D), sigma: out.slice(D, 2 * D).map((v) => Math.exp(0.5 * v)) };
    },
    // the mean of p(x|z), or a draw; in [0, 1] as a screen shows it
    decode(z, mode = "mean") {
      const out = decoder(z, [D]), pixel = HEADS[head.name][mode === "mean" ? "mean" : "draw"];
      return Float32Array.from({ length: pixels }, (_, i) => Math.min(1, Math.max(0, pixel(head, out[i], out[pixels + i]))));
    },
  };
}
