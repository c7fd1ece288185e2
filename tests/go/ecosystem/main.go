// Command ecosystem asks the code of the tools that read PodFlow objects what they make of one. The object comes
// on standard input as JSON, and one line of JSON is the answer.
//
//	ecosystem kstatus          kstatus (cli-utils), which Flux and kpt wait by
//	ecosystem lua FILE         a health script as Argo CD runs it: gopher-lua, and only the libraries that it opens
//	ecosystem cel EXPRESSION   a CEL expression over the object's fields, as in Flux' healthCheckExprs
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/ext"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kjson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

func main() {
	answer, err := run(os.Args[1:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(answer)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) (any, error) {
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return nil, err
	}
	// Whole numbers as int64, as every reader of objects has them.
	var object map[string]any
	if err := kjson.Unmarshal(input, &object); err != nil {
		return nil, err
	}
	switch {
	case len(args) == 1 && args[0] == "kstatus":
		result, err := status.Compute(&unstructured.Unstructured{Object: object})
		if err != nil {
			return nil, err
		}
		return map[string]any{"status": result.Status.String(), "message": result.Message}, nil
	case len(args) == 2 && args[0] == "lua":
		return health(args[1], object)
	case len(args) == 2 && args[0] == "cel":
		return evaluate(args[1], object)
	}
	return nil, fmt.Errorf("usage: ecosystem kstatus | lua FILE | cel EXPRESSION")
}

// As ExecuteHealthLua of argo-cd's util/lua/lua.go: without useOpenLibs there is no string library.
func health(file string, object map[string]any) (any, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{{lua.LoadLibName, lua.OpenPackage}, {lua.BaseLibName, lua.OpenBase}, {lua.TabLibName, lua.OpenTable}} {
		err := state.CallByParam(lua.P{Fn: state.NewFunction(library.open), Protect: true}, lua.LString(library.name))
		if err != nil {
			return nil, err
		}
	}
	state.SetGlobal("obj", value(state, object))
	if err := state.DoFile(file); err != nil {
		return nil, err
	}
	table, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return nil, fmt.Errorf("%s returned a %s", file, state.Get(-1).Type())
	}
	return map[string]any{
		"status":  lua.LVAsString(table.RawGetString("status")),
		"message": lua.LVAsString(table.RawGetString("message")),
	}, nil
}

func value(state *lua.LState, from any) lua.LValue {
	switch from := from.(type) {
	case bool:
		return lua.LBool(from)
	case int64:
		return lua.LNumber(from)
	case float64:
		return lua.LNumber(from)
	case string:
		return lua.LString(from)
	case []any:
		table := state.CreateTable(len(from), 0)
		for _, item := range from {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.CreateTable(0, len(from))
		for key, item := range from {
			table.RawSetString(key, value(state, item))
		}
		return table
	}
	return lua.LNil
}

// As fluxcd/pkg's runtime/cel: the fields of the object are the variables.
func evaluate(expression string, object map[string]any) (any, error) {
	options := []cel.EnvOption{ext.Strings()}
	for _, field := range []string{"apiVersion", "kind", "metadata", "spec", "status", "data"} {
		options = append(options, cel.Variable(field, cel.DynType))
	}
	env, err := cel.NewEnv(options...)
	if err != nil {
		return nil, err
	}
	tree, issues := env.Compile(expression)
	if issues.Err() != nil {
		return nil, issues.Err()
	}
	program, err := env.Program(tree)
	if err != nil {
		return nil, err
	}
	result, _, err := program.Eval(object)
	if err != nil {
		return nil, err
	}
	return result.Value(), nil
}
