"""The cache of keys and values: a model reads a few tokens more without reading all again."""

import functools
import inspect


def advance(model, cache, ids, position, mask):
    """The model reads ids [R, T] behind the tokens that its cache holds. Returns their last hidden
    states [R, T, width]. mask [R, T, columns]: which columns of the cache each of them sees."""
    more = {cache_parameter(type(model.base_model)): cache}
    out = model.base_model(
        input_ids=ids, attention_mask=mask[:, None], position_ids=position, use_cache=True, **more
    )
    return out.last_hidden_state


@functools.cache
def cache_parameter(backbone):
    """The name of the cache in a backbone's forward: transformers 5 has renamed it."""
    names = inspect.signature(backbone.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def grown_columns(read, added):
    """Columns of a RowCache that has read some and gets more: it grows by half each time."""
    columns = read
    while columns < read + added:
        columns += columns // 2
    return columns


class RowCache:
    """Keys and values of all layers in preallocated tensors. Whole rows can be dropped.

    The models call only `update` and `get_seq_length`. transformers' DynamicCache is copied
    as a whole at every token, because it concatenates. Its StaticCache cannot drop rows.
    """

    def __init__(self, room, last_layer):
        self.layers, self.length, self.room, self.last_layer = {}, 0, room, last_layer
        self.slot = None  # for recorded steps: a tensor [1], the column of the next token

    def get_seq_length(self, layer_idx=0):
        return self.length

    def update(self, key, value, layer_idx, *args, **kwargs):  # [R, heads, T, head_dim]
        # Under autocast the norm of the keys returns float32. Without this the whole cache would be
        # float32, and it would be cast again at every token.
        key = key.to(value.dtype)
        if self.slot is not None:  # all columns are returned, the mask hides the empty ones
            for stored, x in zip(self.layers[layer_idx], (key, value)):
                stored.index_copy_(2, self.slot, x)
            return tuple(self.layers[layer_idx])
        stop = self.length + key.shape[2]
        if layer_idx not in self.layers or self.layers[layer_idx][0].shape[2] < stop:
            # The cache grows by a half each time, so that it is rarely copied.
            length = min(max(stop + stop // 2, 128), max(stop, self.room))
            old = self.layers.get(layer_idx, (key[:, :, :0], value[:, :, :0]))
            self.layers[layer_idx] = [self._moved(x, length) for x in old]
        for stored, x in zip(self.layers[layer_idx], (key, value)):
            stored[:, :, self.length : stop] = x
        if layer_idx == self.last_layer:  # now all layers have stored the new tokens
            self.length = stop
        return tuple(stored[:, :, :stop] for stored in self.layers[layer_idx])

    def _moved(self, x, length):  # into a longer tensor
        longer = x.new_zeros(x.shape[0], x.shape[1], length, x.shape[3])
        longer[:, :, : self.length] = x[:, :, : self.length]
        return longer

    def resize(self, length):
        for i, kv in self.layers.items():  # layer by layer: never two whole caches at once
            self.layers[i] = [self._moved(x, length) for x in kv]

    def select(self, rows):
        for i, kv in self.layers.items():  # index_select copies rows, x[rows] single numbers
            self.layers[i] = [x.index_select(0, rows) for x in kv]
