"""Every layer of both Kerases that a file may name, after a search for those that do more with a config than compute.

The search was for code that is loaded, names that are looked up and files that are opened; the layers that do so are
refused in kprune/trusted.py. A name that is missing here is that of a layer that nobody has looked at yet (Keras
3.15.1, tf_keras 2.21, tfmot 0.8.1).
"""

from kprune.report import trusted

_KERAS = """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention AlphaDropout Attention
    AugMix AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D BaseAdaptiveAveragePooling
    BaseAdaptiveMaxPooling BaseAdaptivePooling BaseConv BaseConvTranspose BaseDepthwiseConv BaseGlobalPooling
    BaseImagePreprocessingLayer BasePooling BaseSeparableConv BaseSpatialDropout BatchNormalization
    Bidirectional CategoryEncoding CenterCrop Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D
    Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM ConvLSTM1D ConvLSTM2D ConvLSTM3D
    ConvLSTMCell Cropping1D Cropping2D Cropping3D CustomScaleLayer CutMix DataLayer Dense DepthwiseConv1D
    DepthwiseConv2D Discretization Distiller Dot Dropout ELU EinsumDense Embedding Equalization Flatten
    Functional GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization
    GroupedQueryAttention HashedCrossing Hashing Identity IndexLookup InputLayer IntegerLookup LSTM LSTMCell
    LayerNormalization LayerScale LeakyReLU Masking MaxNumBoundingBoxes MaxPooling1D MaxPooling2D MaxPooling3D
    Maximum MelSpectrogram Merge Minimum MixUp Model MultiHeadAttention Multiply Normalization PReLU Permute
    Pipeline RMSNormalization RNN RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter
    RandomContrast RandomCrop RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale
    RandomHeight RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation
    RandomSharpness RandomShear RandomTranslation RandomWidth RandomZoom ReLU RepeatVector Rescaling Reshape
    Resizing ReversibleEmbedding STFTSpectrogram SeparableConv1D SeparableConv2D Sequential SimpleRNN
    SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization
    StackedRNNCells StochasticDepth StringLookup Subtract TFDConcat TFDIdentity TextVectorization
    ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D Wrapper
    ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""
_TF_KERAS = """
    AUC AbstractRNNCell Accuracy Activation ActivityRegularization Add AddLoss AddMetric AdditiveAttention
    AlphaDropout Attention Average AveragePooling1D AveragePooling2D AveragePooling3D BaseDenseAttention
    BaseRandomLayer BasicLSTMCell BasicRNNCell BatchNormalization BatchNormalizationBase Bias Bidirectional
    BinaryAccuracy BinaryCrossentropy BinaryIoU CategoricalAccuracy CategoricalCrossentropy CategoricalHinge
    CategoryEncoding CenterCrop ClassMethod ClusterWeights ClusterWeightsMHA ClusterWeightsRNN Concatenate Conv
    Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM ConvLSTM1D ConvLSTM2D
    ConvLSTM3D ConvLSTMCell ConvRNN CosineSimilarity Cropping1D Cropping2D Cropping3D CuDNNGRU CuDNNLSTM
    CustomScaleLayer Dense DepthwiseConv DepthwiseConv1D DepthwiseConv2D Discretization DistributedCallbackModel
    Dot Dropout DynamicEmbedding DynamicLookup ELU EinsumDense Embedding F1Score FBetaScore FalseNegatives
    FalsePositives Flatten Functional GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D
    GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GlobalPooling1D GlobalPooling2D GlobalPooling3D GroupNormalization HashedCrossing Hashing Hinge Identity
    IndexLookup InputLayer InstanceMethod InstanceProperty IntegerLookup IoU KLDivergence LSTM LSTMCell Layer
    LayerNormalization LayerRNNCell LayerScale LeakyReLU LinearModel LocallyConnected1D LocallyConnected2D
    LogCoshError Masking MaxPooling1D MaxPooling2D MaxPooling3D Maximum Mean MeanAbsoluteError
    MeanAbsolutePercentageError MeanIoU MeanMetricWrapper MeanRelativeError MeanSquaredError
    MeanSquaredLogarithmicError MeanTensor Metric Minimum Model MultiHeadAttention MultiRNNCell Multiply
    Normalization OneHotIoU OneHotMeanIoU PReLU Permute Poisson Pooling1D Pooling2D Pooling3D Precision
    PrecisionAtRecall PreprocessingLayer PruneLowMagnitude PyMetric QuantizeAnnotate QuantizeLayer
    QuantizeWrapper QuantizeWrapperV2 R2Score RNN RNNCell RandomBrightness RandomContrast RandomCrop RandomFlip
    RandomFourierFeatures RandomHeight RandomRotation RandomTranslation RandomWidth RandomZoom ReLU Recall
    RecallAtPrecision Reduce RepeatVector Rescaling Reshape Resizing RootMeanSquaredError
    SensitivityAtSpecificity SensitivitySpecificityBase SeparableConv SeparableConv1D SeparableConv2D Sequential
    SharpnessAwareMinimization SimpleRNN SimpleRNNCell SlicingOpLambda SmallSubclassMLP Softmax
    SparseCategoricalAccuracy SparseCategoricalCrossentropy SparseTopKCategoricalAccuracy SpatialDropout1D
    SpatialDropout2D SpatialDropout3D SpecificityAtSensitivity SpectralNormalization SquaredHinge
    StackedRNNCells StochasticDepth StringLookup Subtract Sum SumOverBatchSize SumOverBatchSizeMetricWrapper
    SyncBatchNormalization TFOpLambda TextVectorization ThresholdedReLU TimeDistributed TopKCategoricalAccuracy
    TrueNegatives TruePositives UnitNormalization UpSampling1D UpSampling2D UpSampling3D VariableScopeLayer
    WideDeepModel Wrapper ZeroPadding1D ZeroPadding2D ZeroPadding3D _ConfusionMatrixConditionCount _CuDNNRNN
    _IoUBase _Merge _MultiIOSubclassModel _MultiIOSubclassModelCustomBuild _SmallSubclassMLPCustomBuild
    _SubclassModel _SubclassModelCustomBuild
"""
KERAS, TF_KERAS = set(_KERAS.split()), set(_TF_KERAS.split())


def loadable(library):
    """The library's own layer classes, metrics of tf_keras and models included, that kprune does not refuse."""
    parts, open_classes, found = (library.layers.Layer,), [library.layers.Layer], set()
    while open_classes:
        for cls in open_classes.pop().__subclasses__():
            if cls not in found:
                found.add(cls)
                open_classes.append(cls)

    def accepted(cls):
        try:
            return trusted._is_part(cls, parts, own=False)
        except trusted._Refused:
            return False

    return {cls for cls in found if accepted(cls) and cls.__module__.partition(".")[0] != "kprune"}
