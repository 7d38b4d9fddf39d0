from .prepare import prepare
print(prepare())
