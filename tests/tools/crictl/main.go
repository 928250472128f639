// Command crictl answers the few questions that kind and a person inside a node put to the real one, whose module is
// not published: which images, pods and containers there are, and what an image is.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	socket = "unix:///run/containerd/containerd.sock"
	usage  = "crictl images | inspecti IMAGE | rmi IMAGE | ps | pods | info | version"
)

type client struct {
	images  cri.ImageServiceClient
	runtime cri.RuntimeServiceClient
}

func main() {
	connection, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		c := client{cri.NewImageServiceClient(connection), cri.NewRuntimeServiceClient(connection)}
		err = c.run(ctx, append(os.Args[1:], "", "")[:2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "crictl:", err)
		os.Exit(1)
	}
}

func (c client) run(ctx context.Context, words []string) error {
	image := &cri.ImageSpec{Image: words[1]}
	switch words[0] {
	case "images":
		return c.listImages(ctx)
	case "inspecti":
		return c.inspectImage(ctx, image)
	case "rmi":
		_, err := c.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: image})
		return err
	case "ps":
		return c.listContainers(ctx)
	case "pods":
		return c.listPods(ctx)
	case "info":
		answer, err := c.runtime.Status(ctx, &cri.StatusRequest{Verbose: true})
		return show(answer, err)
	case "version":
		answer, err := c.runtime.Version(ctx, &cri.VersionRequest{})
		return show(answer, err)
	}
	return fmt.Errorf("expected %s, found %q", usage, words[0])
}

func (c client) listImages(ctx context.Context) error {
	answer, err := c.images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return err
	}
	rows := [][]any{{"IMAGE", "ID", "BYTES"}}
	for _, image := range answer.Images {
		names := image.RepoTags
		if len(names) == 0 {
			names = image.RepoDigests
		}
		for _, name := range names {
			rows = append(rows, []any{name, image.Id, image.Size})
		}
	}
	return table(rows)
}

// `kind load docker-image` reads status.id and status.repoTags.
func (c client) inspectImage(ctx context.Context, image *cri.ImageSpec) error {
	answer, err := c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: image})
	if err == nil && answer.Image == nil {
		err = fmt.Errorf("no such image: %s", image.Image)
	}
	if err != nil {
		return err
	}
	found := answer.Image
	return show(map[string]any{"status": map[string]any{
		"id": found.Id, "repoTags": found.RepoTags, "repoDigests": found.RepoDigests, "size": fmt.Sprint(found.Size),
	}}, nil)
}

func (c client) listContainers(ctx context.Context) error {
	answer, err := c.runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return err
	}
	rows := [][]any{{"CONTAINER", "STATE", "NAME", "ATTEMPT", "POD"}}
	for _, one := range answer.Containers {
		pod := one.Labels["io.kubernetes.pod.name"]
		rows = append(rows, []any{one.Id, one.State, one.Metadata.Name, one.Metadata.Attempt, pod})
	}
	return table(rows)
}

func (c client) listPods(ctx context.Context) error {
	answer, err := c.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	rows := [][]any{{"POD", "STATE", "NAME", "NAMESPACE"}}
	for _, one := range answer.Items {
		rows = append(rows, []any{one.Id, one.State, one.Metadata.Name, one.Metadata.Namespace})
	}
	return table(rows)
}

func table(rows [][]any) error {
	writer := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
	for _, row := range rows {
		for _, cell := range row {
			fmt.Fprint(writer, cell, "\t")
		}
		fmt.Fprintln(writer)
	}
	return writer.Flush()
}

func show(answer any, err error) error {
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(answer, "", "  ")
	fmt.Println(string(text))
	return err
}
