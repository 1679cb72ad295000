// The engine: a tokenizer, Qwen3's forward pass with a cache, and a sampler.
//
// It does what common/models.py and common/sampler.py do, for the three tiny models of the toy.
// Functions that have a twin in the Python files have its name, letter by letter.
//
// Weights arrive as whole numbers of three bytes with one float32 scale for each row. Products are
// summed in double precision. What is kept between layers is float32, as in PyTorch.
//
// Shapes are written as in the Python: [T, D] is T rows of D numbers, one behind the other.
"use strict";

// ======================================================================== text and tokens

// The bytes of a base64 text.
function bytes_of(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text.trim());
  const raw = atob(text.trim()); // older browsers
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

// The toy's tokenizer: words, single digits and signs, each with the space before it.
class Tokenizer {
  constructor(vocabulary) {
    this.id = vocabulary; // {text: id}
    this.text = Object.keys(vocabulary).sort((a, b) => vocabulary[a] - vocabulary[b]);
    this.size = this.text.length;
    this.user = vocabulary["<|user|>"];
    this.assistant = vocabulary["<|assistant|>"];
    this.end = vocabulary["<|end|>"];
    this.unknown = vocabulary["<|unk|>"];
    this.first_word = this.end + 1; // the ids below it are special tokens
  }

  // The words, digits and signs of a text without special tokens.
  pieces(text) {
    // A word at the start of a text or of a line is the same token as in its middle.
    const spaced = text.replace(/\n(?=\S)/g, "\n ").replace(/^(?=\S)/, " ");
    return spaced.match(/ ?\\boxed\{| ?\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s/gu) || [];
  }

  encode(text) {
    const ids = [];
    for (const part of text.split(/(<\|(?:pad|unk|user|assistant|end)\|>)/)) {
      if (part.startsWith("<|") && part in this.id) {
        ids.push(this.id[part]);
        continue;
      }
      for (const piece of this.pieces(part)) ids.push(this.id[piece] ?? this.unknown);
    }
    return ids;
  }

  // Without special tokens.
  decode(ids) {
    return ids.map((i) => (i < this.first_word ? "" : this.text[i])).join("");
  }

  // The chat template: one user's turn and the opening of the assistant's turn.
  prompt_ids(user) {
    return [this.user, ...this.encode(user), this.end, this.assistant];
  }
}

// ======================================================================== arithmetic

// out [T, O] = x [T, I] w^T, with w [O, I]. Four rows of x at a time share each weight that was
// read, which is three times faster than one row at a time.
function multiply(out, x, w, T, I, O) {
  let t = 0;
  for (; t + 4 <= T; t += 4) {
    const a = t * I;
    const b = a + I;
    const c = b + I;
    const d = c + I;
    for (let o = 0, at = 0; o < O; o++) {
      let p = 0;
      let q = 0;
      let r = 0;
      let s = 0;
      for (let i = 0; i < I; i++, at++) {
        const weight = w[at];
        p += weight * x[a + i];
        q += weight * x[b + i];
        r += weight * x[c + i];
        s += weight * x[d + i];
      }
      const to = t * O + o;
      out[to] = p;
      out[to + O] = q;
      out[to + 2 * O] = r;
      out[to + 3 * O] = s;
    }
  }
  for (; t < T; t++) {
    for (let o = 0, at = 0; o < O; o++) {
      let sum = 0;
      for (let i = 0; i < I; i++, at++) sum += w[at] * x[t * I + i];
      out[t * O + o] = sum;
    }
  }
}

// Every row of x is divided by the root of its mean square.
function rms_norm(out, x, weight, rows, width, eps) {
  for (let r = 0, at = 0; r < rows; r++, at += width) {
    let squares = 0;
    for (let i = 0; i < width; i++) squares += x[at + i] * x[at + i];
    const scale = 1 / Math.sqrt(squares / width + eps);
    for (let i = 0; i < width; i++) out[at + i] = x[at + i] * scale * weight[i];
  }
}

function log_softmax(logits, temperature = 1) {
  const out = new Float64Array(logits.length);
  let most = -Infinity;
  for (let v = 0; v < out.length; v++) {
    out[v] = logits[v] / temperature;
    if (out[v] > most) most = out[v];
  }
  let total = 0;
  for (let v = 0; v < out.length; v++) total += Math.exp(out[v] - most);
  const log_total = most + Math.log(total);
  for (let v = 0; v < out.length; v++) out[v] -= log_total;
  return out;
}

function argmax(x) {
  let best = 0;
  for (let v = 1; v < x.length; v++) if (x[v] > x[best]) best = v;
  return best;
}

// ======================================================================== the model

class Model {
  // config: see docs/build_playground.py. bytes: the tensors in the order in which they are read
  // here.
  constructor(name, config, bytes) {
    this.name = name;
    this.config = config;
    // vocabulary, width, width of the MLP, heads, heads of keys and values, width of a head
    const { V, D, F, H, G, d, layers } = config;
    let at = 0;
    const vector = (n) => {
      const x = new Float32Array(bytes.buffer.slice(at, at + 4 * n));
      at += 4 * n;
      return x;
    };
    const matrix = (rows, columns) => {
      const scale = vector(rows);
      const w = new Float32Array(rows * columns);
      for (let r = 0, i = 0; r < rows; r++) {
        for (let c = 0; c < columns; c++, i++, at += 3) {
          // Put the three bytes on top of 32 bits. The shift to the right then keeps the sign.
          const top = (bytes[at + 2] << 24) | (bytes[at + 1] << 16) | (bytes[at] << 8);
          w[i] = (top >> 8) * scale[r];
        }
      }
      return w;
    };
    this.embedding = matrix(V, D); // it is also the head: both are tied
    this.layers = Array.from({ length: layers }, () => ({
      norm_before: vector(D),
      q: matrix(H * d, D),
      k: matrix(G * d, D),
      v: matrix(G * d, D),
      q_norm: vector(d),
      k_norm: vector(d),
      o: matrix(D, H * d),
      norm_after: vector(D),
      gate: matrix(F, D),
      up: matrix(F, D),
      down: matrix(D, F),
    }));
    this.norm = vector(D);
    const attention = 2 * H * d * D + 2 * G * d * D + 2 * d;
    this.parameters = V * D + D + layers * (attention + 2 * D + 3 * F * D);
    this.prepare_rotation();
  }

  // cos and sin of every position and frequency, [longest, d / 2].
  prepare_rotation() {
    const { longest, theta, d } = this.config;
    const half = d / 2;
    this.cos = new Float64Array(longest * half);
    this.sin = new Float64Array(longest * half);
    for (let position = 0; position < longest; position++) {
      for (let i = 0; i < half; i++) {
        const angle = position * Math.pow(theta, (-2 * i) / d);
        this.cos[position * half + i] = Math.cos(angle);
        this.sin[position * half + i] = Math.sin(angle);
      }
    }
  }

  // RoPE in place, x [T, heads * d]. Number i is paired with number i + d / 2, as in transformers.
  rotate(x, T, heads, first) {
    const { d } = this.config;
    const half = d / 2;
    for (let t = 0, at = 0; t < T; t++) {
      for (let h = 0; h < heads; h++, at += d) {
        for (let i = 0; i < half; i++) {
          const c = this.cos[(first + t) * half + i];
          const s = this.sin[(first + t) * half + i];
          const a = x[at + i];
          const b = x[at + half + i];
          x[at + i] = a * c - b * s;
          x[at + half + i] = b * c + a * s;
        }
      }
    }
  }

  // Causal attention with grouped heads. q and out [T, H * d]; keys and values hold the `past`
  // first tokens and the T new ones, [past + T, G * d].
  attend(out, q, keys, values, T, past) {
    const { H, G, d } = this.config;
    const score = new Float64Array(past + T);
    const sum = new Float64Array(d);
    const scale = 1 / Math.sqrt(d);
    for (let t = 0; t < T; t++) {
      const seen = past + t + 1; // a token sees itself and what stands before it
      for (let h = 0; h < H; h++) {
        const from = t * H * d + h * d;
        const head = Math.floor((h * G) / H) * d;
        let most = -Infinity;
        for (let j = 0; j < seen; j++) {
          let product = 0;
          for (let i = 0, at = j * G * d + head; i < d; i++) product += q[from + i] * keys[at + i];
          score[j] = product * scale;
          if (score[j] > most) most = score[j];
        }
        let total = 0;
        sum.fill(0);
        for (let j = 0; j < seen; j++) {
          const weight = Math.exp(score[j] - most);
          total += weight;
          for (let i = 0, at = j * G * d + head; i < d; i++) sum[i] += weight * values[at + i];
        }
        for (let i = 0; i < d; i++) out[from + i] = sum[i] / total;
      }
    }
  }

  // Hidden states [T, D] of new tokens. Their keys and values are written behind the `past` first
  // ones of each layer.
  forward(ids, past, keys, values) {
    const { D, F, H, G, d, eps, longest } = this.config;
    const T = ids.length;
    if (past + T > longest) throw new Error(`the text is longer than ${longest} tokens`);
    const x = new Float32Array(T * D);
    const normed = new Float32Array(T * D);
    const back = new Float32Array(T * D);
    const q = new Float32Array(T * H * d);
    const k = new Float32Array(T * G * d);
    const v = new Float32Array(T * G * d);
    const mixed = new Float32Array(T * H * d);
    const gate = new Float32Array(T * F);
    const up = new Float32Array(T * F);
    ids.forEach((id, t) => x.set(this.embedding.subarray(id * D, id * D + D), t * D));
    this.layers.forEach((layer, number) => {
      rms_norm(normed, x, layer.norm_before, T, D, eps);
      multiply(q, normed, layer.q, T, D, H * d);
      multiply(k, normed, layer.k, T, D, G * d);
      multiply(v, normed, layer.v, T, D, G * d);
      rms_norm(q, q, layer.q_norm, T * H, d, eps);
      rms_norm(k, k, layer.k_norm, T * G, d, eps);
      this.rotate(q, T, H, past);
      this.rotate(k, T, G, past);
      keys[number].set(k, past * G * d);
      values[number].set(v, past * G * d);
      this.attend(mixed, q, keys[number], values[number], T, past);
      multiply(back, mixed, layer.o, T, H * d, D);
      for (let i = 0; i < x.length; i++) x[i] += back[i];

      rms_norm(normed, x, layer.norm_after, T, D, eps);
      multiply(gate, normed, layer.gate, T, D, F);
      multiply(up, normed, layer.up, T, D, F);
      // SwiGLU
      for (let i = 0; i < gate.length; i++) gate[i] = (gate[i] / (1 + Math.exp(-gate[i]))) * up[i];
      multiply(back, gate, layer.down, T, F, D);
      for (let i = 0; i < x.length; i++) x[i] += back[i];
    });
    rms_norm(normed, x, this.norm, T, D, eps);
    return normed;
  }
}

// ======================================================================== a text that is read

// A text as one model reads it: keys, values and last hidden states of every token. It grows at
// its end, and it can be cut anywhere. So a branch costs only its own tokens.
class Stem {
  constructor(model) {
    this.model = model;
    this.ids = [];
    this.room = 0; // tokens for which there is memory
    this.known = []; // logits that were computed already, by position
  }

  get length() {
    return this.ids.length;
  }

  make_room(room) {
    const { layers, G, d, D } = this.model.config;
    const longer = (old, n) => {
      const x = new Float32Array(n);
      if (old) x.set(old);
      return x;
    };
    const numbers = Array.from({ length: layers }, (_, i) => i);
    this.keys = numbers.map((i) => longer(this.keys?.[i], room * G * d));
    this.values = numbers.map((i) => longer(this.values?.[i], room * G * d));
    this.hidden = longer(this.hidden, room * D);
    this.room = room;
  }

  push(ids) {
    if (!ids.length) return this;
    const past = this.length;
    const needed = past + ids.length;
    if (needed > this.room) this.make_room(Math.max(needed, 256, Math.floor(this.room * 1.5)));
    const hidden = this.model.forward(ids, past, this.keys, this.values);
    this.hidden.set(hidden, past * this.model.config.D);
    this.ids.push(...ids);
    return this;
  }

  cut(n) {
    this.ids.length = Math.min(n, this.length);
    this.known.length = Math.min(n, this.known.length);
    return this;
  }

  // Become exactly these ids. What is the same at the start is kept.
  read(ids) {
    let same = 0;
    while (same < ids.length && same < this.length && ids[same] === this.ids[same]) same++;
    return this.cut(same).push(ids.slice(same));
  }

  // The logits [V] of the token behind the first n ones.
  logits(n) {
    if (!this.known[n - 1]) {
      const { V, D } = this.model.config;
      const out = new Float32Array(V);
      multiply(out, this.hidden.subarray((n - 1) * D, n * D), this.model.embedding, 1, D, V);
      this.known[n - 1] = out;
    }
    return this.known[n - 1];
  }

  logp(n, temperature = 1) {
    return log_softmax(this.logits(n), temperature);
  }

  // A copy of the first n tokens that grows on its own.
  fork(n) {
    const { G, d, D } = this.model.config;
    const copy = new Stem(this.model);
    copy.make_room(n + 64);
    for (let i = 0; i < this.keys.length; i++) {
      copy.keys[i].set(this.keys[i].subarray(0, n * G * d));
      copy.values[i].set(this.values[i].subarray(0, n * G * d));
    }
    copy.hidden.set(this.hidden.subarray(0, n * D));
    copy.ids = this.ids.slice(0, n);
    return copy;
  }
}

// ======================================================================== the sampler

// A number in [0, 1) that depends on its arguments alone. So any rollout can be drawn again, and
// a branch keeps the luck of its positions.
function uniform(seed, stream, at) {
  const mix = (h) => {
    h ^= h >>> 16;
    h = Math.imul(h, 0x85ebca6b);
    h ^= h >>> 13;
    h = Math.imul(h, 0xc2b2ae35);
    return h ^ (h >>> 16);
  };
  const start = mix(mix(mix(seed + 0x9e3779b9) ^ (stream + 0x7f4a7c15)) ^ (at + 0x165667b1));
  const high = mix(start ^ 0x27d4eb2f) >>> 0; // 32 bits
  const low = mix(start ^ 0x5bd1e995) >>> 11; // 21 bits
  return (high * 0x200000 + low) / 0x20000000000000;
}

// The token at which the cumulative distribution passes u.
function draw(logp, u) {
  let total = 0;
  for (const x of logp) total += Math.exp(x);
  let sum = 0;
  for (let v = 0; v < logp.length; v++) {
    sum += Math.exp(logp[v]);
    if (sum > u * total) return v;
  }
  return logp.length - 1;
}

// One more token behind what the stem has read. At temperature 0 it is the likeliest one.
function next_token(stem, prompt_length, { temperature = 1, seed = 0, stream = 0 } = {}) {
  const n = stem.length;
  if (temperature === 0) return argmax(stem.logits(n));
  return draw(stem.logp(n, temperature), uniform(seed, stream, n - prompt_length));
}
